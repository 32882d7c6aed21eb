/*
 * session.h
 *		The session of a background process of ours.
 */
#ifndef SAGA_SESSION_H
#define SAGA_SESSION_H

/* ---- coordinator and courier: a superuser's session --------------------- */

/* Its settings are its own, whatever ALTER DATABASE or ALTER ROLE ... SET says;
 * once, when it has connected. */
extern void saga_session_pin(void);

/* ---- and the worker ------------------------------------------------------ */

/* Transactions of a SagaDriver. */
extern void saga_session_begin(void);
extern void saga_session_commit(void);
extern void saga_session_abort(void);

/* Exits unless the database has the extension, at our version: then nothing
 * is to be done here, and a coordinator has to find that out for all. */
extern void saga_session_require_extension(void);

#endif							/* SAGA_SESSION_H */
