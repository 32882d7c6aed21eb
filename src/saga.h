/*
 * saga.h
 *		The module itself.
 *
 * Nothing here is called by other files.
 */
#ifndef SAGA_H
#define SAGA_H

extern PGDLLEXPORT void _PG_init(void);

#endif							/* SAGA_H */
