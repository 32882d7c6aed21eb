/* saga--1.0.sql */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION saga" to load this file. \quit

------------------------------------------------------------------------------
-- saga: sagas inside the database
--
-- A definition is a named, versioned list of steps (saga.definition, one row
-- per name; saga.definition_version, one per version, never changed).  A saga
-- is one run of a version: its row in saga.saga is written by saga.begin() in
-- the caller's transaction, and from then on by the engine alone.  Every
-- operation that was tried has a row in saga.step (its state and its result),
-- every try that failed one in saga.attempt (its whole error).
--
-- Whoever wants something of a saga (cancel, retry ...) adds a row to
-- saga.message; the engine takes it away in the transaction in which it acts
-- on it, and writes saga.history.
--
-- What grows with the number of sagas is partitioned BY LIST (slot) into eight
-- fixed leaves, each registered for pg_dump.  New sagas go to the current slot
-- of saga.coordinator; the rows of one saga in saga, step, attempt and history
-- are in one slot.  Retention may move it to another one: "slot" in message,
-- branch, task, lock and key is where it was once, so join these on its id.
--
-- Nothing here is for users to read: they have the views, further down.
------------------------------------------------------------------------------

-- Whoever owns the schema can add to it and drop from it.
DO $$
DECLARE
    owner name;
BEGIN
    SELECT r.rolname INTO owner
    FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
    WHERE n.nspname = 'saga' AND NOT r.rolsuper;
    IF FOUND THEN
        RAISE EXCEPTION 'schema "saga" belongs to role "%", which is not a superuser', owner
            USING ERRCODE = 'insufficient_privilege',
                  HINT = 'Drop it: CREATE EXTENSION makes it.';
    END IF;
END
$$;

------------------------------------------------------------------------------
-- Types
------------------------------------------------------------------------------

CREATE TYPE saga.saga_status AS ENUM (
    'scheduled', 'running', 'compensating', 'held', 'stuck', 'paused',
    'completed', 'compensated', 'abandoned');
COMMENT ON TYPE saga.saga_status IS
    'state of a saga: completed, compensated and abandoned are final';

CREATE TYPE saga.operation AS ENUM ('action', 'compensation', 'confirmation');
COMMENT ON TYPE saga.operation IS 'what is done for a step';

CREATE TYPE saga.operation_status AS ENUM (
    'pending', 'running', 'waiting', 'succeeded', 'failed', 'skipped');
COMMENT ON TYPE saga.operation_status IS 'state of one operation of a step';

------------------------------------------------------------------------------
-- Tables
------------------------------------------------------------------------------

CREATE TABLE saga.coordinator (
    singleton   boolean NOT NULL DEFAULT true,
    id          uuid NOT NULL DEFAULT gen_random_uuid(),
    database    oid NOT NULL,
    slot        smallint NOT NULL DEFAULT 0,
    created_at  timestamptz NOT NULL DEFAULT now(),
    adopted_at  timestamptz,
    CONSTRAINT coordinator_pkey PRIMARY KEY (singleton),
    CONSTRAINT coordinator_is_single CHECK (singleton)
);
COMMENT ON TABLE saga.coordinator IS
    'who this coordinator is; never dumped, so that a copy of the database does not act by itself';
COMMENT ON COLUMN saga.coordinator.id IS 'identity that the sagas begun here carry';
COMMENT ON COLUMN saga.coordinator.database IS 'OID of the database the identity was made for';
COMMENT ON COLUMN saga.coordinator.slot IS 'slot that new sagas go to';
COMMENT ON COLUMN saga.coordinator.adopted_at IS 'last saga.adopt(): sagas of other coordinators that had ended count as if that had been then; NULL = they are left alone';
INSERT INTO saga.coordinator (database)
    SELECT oid FROM pg_catalog.pg_database
    WHERE datname = pg_catalog.current_database();

CREATE TABLE saga.slot (
    slot        smallint NOT NULL,
    generation  integer NOT NULL DEFAULT 0,
    opened_at   timestamptz,
    closed_at   timestamptz,
    emptied_at  timestamptz,
    looked_at   timestamptz,
    sagas       bigint,
    expired     bigint,
    moved_xid   xid8,
    waits_for   text,
    CONSTRAINT slot_pkey PRIMARY KEY (slot)
);
COMMENT ON TABLE saga.slot IS
    'what is known of the slots that the tables of sagas are partitioned by; never dumped: see src/retention.c';
COMMENT ON COLUMN saga.slot.generation IS 'how often it was opened, closed or emptied';
COMMENT ON COLUMN saga.slot.opened_at IS 'since when sagas go there; NULL = not known, or they do not';
COMMENT ON COLUMN saga.slot.closed_at IS 'since when they go elsewhere';
COMMENT ON COLUMN saga.slot.looked_at IS 'when sagas and expired were estimated';
COMMENT ON COLUMN saga.slot.moved_xid IS 'the last transaction that has moved a saga to another slot';
COMMENT ON COLUMN saga.slot.waits_for IS 'why it is not emptied though it should be';
INSERT INTO saga.slot (slot, opened_at)
    SELECT n, CASE WHEN n IN (0, 6) THEN pg_catalog.now() END
    FROM pg_catalog.generate_series(0, 7) n;

CREATE TABLE saga.definition (
    id           integer GENERATED BY DEFAULT AS IDENTITY,
    name         text NOT NULL,
    owner        oid NOT NULL,
    owner_name   text NOT NULL,
    coordinator  uuid NOT NULL,
    enabled      boolean NOT NULL DEFAULT true,
    disabled_by  text,
    max_running  integer,
    exclusive    text,
    exclusive_until text,
    exclusive_timeout interval,
    deadline     interval,
    retention    interval NOT NULL DEFAULT '30 days',
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT definition_pkey PRIMARY KEY (id),
    CONSTRAINT definition_name_key UNIQUE (name)
);
COMMENT ON TABLE saga.definition IS 'one row per definition: whose it is, and the settings of the whole';
COMMENT ON COLUMN saga.definition.coordinator IS 'identity of the coordinator where owner''s OID has a meaning';
COMMENT ON COLUMN saga.definition.disabled_by IS 'invariant whose violation has disabled it; NULL = none, or somebody has decided since';

CREATE TABLE saga.definition_version (
    id           integer GENERATED BY DEFAULT AS IDENTITY,
    name         text NOT NULL,
    version      integer NOT NULL,
    steps        jsonb NOT NULL,
    created_by   text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT definition_version_pkey PRIMARY KEY (id),
    CONSTRAINT definition_version_key UNIQUE (name, version)
);
COMMENT ON TABLE saga.definition_version IS
    'one row per version of a definition, never changed; kept when the definition is dropped, for the sagas that ran it';

CREATE TABLE saga.definition_grant (
    definition_id integer NOT NULL,
    role          oid NOT NULL,
    role_name     text NOT NULL,
    granted_by    text NOT NULL,
    granted_at    timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT definition_grant_pkey PRIMARY KEY (definition_id, role_name)
);
COMMENT ON TABLE saga.definition_grant IS 'who may begin sagas of a definition without owning it';

CREATE SEQUENCE saga.saga_id_seq;
COMMENT ON SEQUENCE saga.saga_id_seq IS 'ids of sagas: for people, not for keys';

CREATE TABLE saga.saga (
    id            bigint NOT NULL,
    due_at        timestamptz,
    created_at    timestamptz NOT NULL,
    start_at      timestamptz,
    started_at    timestamptz,
    finished_at   timestamptz,
    deadline      timestamptz,
    token         uuid NOT NULL,
    coordinator   uuid NOT NULL,
    role          oid NOT NULL,
    parent_id     bigint,
    root_id       bigint,
    definition_id integer NOT NULL,
    turn          integer NOT NULL,
    status        saga.saga_status NOT NULL,
    parent_element integer,
    slot          smallint NOT NULL,
    step          smallint NOT NULL,
    goal          smallint NOT NULL,
    parent_step   smallint,
    depth         smallint NOT NULL,
    backward      boolean NOT NULL,
    suspect       boolean NOT NULL,
    released      boolean NOT NULL,
    recoveries    smallint[],
    role_name     text NOT NULL,
    key           text,
    waiting_for   text,
    traceparent   text,
    input         jsonb NOT NULL,
    error         jsonb,
    CONSTRAINT saga_pkey PRIMARY KEY (id, slot)
) PARTITION BY LIST (slot);
COMMENT ON TABLE saga.saga IS 'one row per saga; written by the engine alone';
COMMENT ON COLUMN saga.saga.due_at IS
    'when it is looked at next: in the past while it goes on, infinity when only a person or a message can move it, NULL when it is final';
COMMENT ON COLUMN saga.saga.start_at IS 'when it is to begin, if not at once';
COMMENT ON COLUMN saga.saga.token IS 'random, known to the coordinator and the participants: keys are made of it, never of the id';
COMMENT ON COLUMN saga.saga.coordinator IS 'identity of the coordinator it belongs to';
COMMENT ON COLUMN saga.saga.role IS 'role that began it: its steps run as this one, while oid and name both match';
COMMENT ON COLUMN saga.saga.definition_id IS 'saga.definition_version.id';
COMMENT ON COLUMN saga.saga.turn IS 'how often the engine has written this row: what it remembers of a saga counts only for the same turn';
COMMENT ON COLUMN saga.saga.step IS 'position of the step of the moment, from 0';
COMMENT ON COLUMN saga.saga.parent_id IS 'saga whose step this one is; NULL = none, -1 = one of another database: see saga.remote_parent';
COMMENT ON COLUMN saga.saga.parent_step IS 'position that the step had when this one was begun, from 0';
COMMENT ON COLUMN saga.saga.depth IS 'how many sagas are above it';
COMMENT ON COLUMN saga.saga.parent_element IS 'element of that step, from 0';
COMMENT ON COLUMN saga.saga.root_id IS 'the saga at the top of the tree, which holds the locks of all of it; NULL = this one';
COMMENT ON COLUMN saga.saga.released IS 'its parent has decided: it completes when it is done';
COMMENT ON COLUMN saga.saga.goal IS 'position of the savepoint at which it turns forward again; -1 = it goes all the way back';
COMMENT ON COLUMN saga.saga.recoveries IS 'how often it went forward again from each savepoint, in the order of the steps; NULL = never from any';
COMMENT ON COLUMN saga.saga.backward IS 'going back; kept while stuck or paused';
COMMENT ON COLUMN saga.saga.suspect IS 'its last attempt timed out or ended its process';
COMMENT ON COLUMN saga.saga.error IS 'what made it go back or get stuck: step, operation, sqlstate, message, detail, hint, context';

CREATE TABLE saga.step (
    saga_id      bigint NOT NULL,
    due_at       timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz,
    element      integer NOT NULL,
    attempts     integer NOT NULL,
    failures     integer NOT NULL,
    crashes      integer NOT NULL,
    operation    saga.operation NOT NULL,
    status       saga.operation_status NOT NULL,
    child_id     bigint,
    task_id      bigint,
    slot         smallint NOT NULL,
    step         smallint NOT NULL,
    round        smallint NOT NULL,
    unknown      boolean NOT NULL,
    cancelled    boolean NOT NULL,
    surplus      boolean NOT NULL,
    signalled    boolean NOT NULL,
    result       jsonb,
    error        jsonb,
    CONSTRAINT step_pkey PRIMARY KEY (saga_id, step, operation, element, round, slot)
) PARTITION BY LIST (slot);
COMMENT ON TABLE saga.step IS 'one row per operation that was tried or skipped; written by the engine alone';
COMMENT ON COLUMN saga.step.element IS 'of a foreach step: position in its array, from 0; else 0';
COMMENT ON COLUMN saga.step.round IS 'how often a savepoint before the step had turned the saga forward again';
COMMENT ON COLUMN saga.step.child_id IS 'of a child step: the saga that was begun for it';
COMMENT ON COLUMN saga.step.task_id IS 'of an external or remote step: the task of its last attempt';
COMMENT ON COLUMN saga.step.due_at IS 'when a waiting one is attempted again, or a running one is over';
COMMENT ON COLUMN saga.step.cancelled IS 'running, and whoever has it was asked to give it up';
COMMENT ON COLUMN saga.step.surplus IS 'succeeded when the quorum had been reached without it';
COMMENT ON COLUMN saga.step.signalled IS 'its signal came before its turn: result is the payload';
COMMENT ON COLUMN saga.step.unknown IS 'it may have had its effect: no answer came';
COMMENT ON COLUMN saga.step.failures IS 'attempts that count against the retry policy';
COMMENT ON COLUMN saga.step.crashes IS 'processes that ended during it';

CREATE TABLE saga.attempt (
    saga_id      bigint NOT NULL,
    started_at   timestamptz NOT NULL,
    finished_at  timestamptz NOT NULL,
    element      integer NOT NULL,
    attempt      integer NOT NULL,
    operation    saga.operation NOT NULL,
    slot         smallint NOT NULL,
    step         smallint NOT NULL,
    round        smallint NOT NULL,
    passing      boolean NOT NULL,
    outcome      text NOT NULL,
    sqlstate     text,
    message      text,
    detail       text,
    hint         text,
    context      text,
    CONSTRAINT attempt_pkey PRIMARY KEY (saga_id, step, operation, element, round, attempt, slot)
) PARTITION BY LIST (slot);
COMMENT ON TABLE saga.attempt IS 'one row per attempt that failed, with its whole error';
COMMENT ON COLUMN saga.attempt.outcome IS 'failed, timeout or lost (its process ended); a step that asked for another attempt has not failed';
COMMENT ON COLUMN saga.attempt.passing IS 'the error was worth another attempt';

CREATE SEQUENCE saga.history_id_seq;
COMMENT ON SEQUENCE saga.history_id_seq IS 'ids of messages and of history, in the order in which they were asked for';

CREATE TABLE saga.history (
    id           bigint NOT NULL,
    saga_id      bigint NOT NULL,
    requested_at timestamptz NOT NULL,
    applied_at   timestamptz NOT NULL,
    element      integer,
    slot         smallint NOT NULL,
    verb         text NOT NULL,
    step         text,
    reason       text,
    role_name    text NOT NULL,
    outcome      text NOT NULL,
    CONSTRAINT history_pkey PRIMARY KEY (saga_id, id, slot)
) PARTITION BY LIST (slot);
COMMENT ON TABLE saga.history IS 'who asked what of a saga, when and why, and what became of it';

-- Eight leaves of each, fixed: see "Retention" in the documentation.
CREATE TABLE saga.saga_0 PARTITION OF saga.saga FOR VALUES IN (0) WITH (fillfactor = 60);
CREATE TABLE saga.saga_1 PARTITION OF saga.saga FOR VALUES IN (1) WITH (fillfactor = 60);
CREATE TABLE saga.saga_2 PARTITION OF saga.saga FOR VALUES IN (2) WITH (fillfactor = 60);
CREATE TABLE saga.saga_3 PARTITION OF saga.saga FOR VALUES IN (3) WITH (fillfactor = 60);
CREATE TABLE saga.saga_4 PARTITION OF saga.saga FOR VALUES IN (4) WITH (fillfactor = 60);
CREATE TABLE saga.saga_5 PARTITION OF saga.saga FOR VALUES IN (5) WITH (fillfactor = 60);
CREATE TABLE saga.saga_6 PARTITION OF saga.saga FOR VALUES IN (6) WITH (fillfactor = 60);
CREATE TABLE saga.saga_7 PARTITION OF saga.saga FOR VALUES IN (7) WITH (fillfactor = 60);
CREATE INDEX saga_due ON saga.saga (role, due_at, id) WHERE due_at IS NOT NULL;
COMMENT ON INDEX saga.saga_due IS 'all sagas that are not final, by role and the time they are looked at next';
CREATE INDEX saga_unfinished ON saga.saga (status, definition_id, id) WHERE due_at IS NOT NULL;
COMMENT ON INDEX saga.saga_unfinished IS 'all sagas that are not final, by status and definition, the oldest first';
CREATE INDEX saga_deadline ON saga.saga (deadline) WHERE due_at IS NOT NULL AND deadline IS NOT NULL;
COMMENT ON INDEX saga.saga_deadline IS 'the sagas that are not final and have a deadline, by that';
CREATE INDEX saga_parent ON saga.saga (parent_id) WHERE parent_id IS NOT NULL;
COMMENT ON INDEX saga.saga_parent IS 'the children of one saga';
CREATE INDEX saga_finished ON saga.saga USING brin (finished_at) WHERE finished_at IS NOT NULL;
COMMENT ON INDEX saga.saga_finished IS 'where the sagas are that ended in some time';

CREATE TABLE saga.step_0 PARTITION OF saga.step FOR VALUES IN (0);
CREATE TABLE saga.step_1 PARTITION OF saga.step FOR VALUES IN (1);
CREATE TABLE saga.step_2 PARTITION OF saga.step FOR VALUES IN (2);
CREATE TABLE saga.step_3 PARTITION OF saga.step FOR VALUES IN (3);
CREATE TABLE saga.step_4 PARTITION OF saga.step FOR VALUES IN (4);
CREATE TABLE saga.step_5 PARTITION OF saga.step FOR VALUES IN (5);
CREATE TABLE saga.step_6 PARTITION OF saga.step FOR VALUES IN (6);
CREATE TABLE saga.step_7 PARTITION OF saga.step FOR VALUES IN (7);

CREATE TABLE saga.attempt_0 PARTITION OF saga.attempt FOR VALUES IN (0);
CREATE TABLE saga.attempt_1 PARTITION OF saga.attempt FOR VALUES IN (1);
CREATE TABLE saga.attempt_2 PARTITION OF saga.attempt FOR VALUES IN (2);
CREATE TABLE saga.attempt_3 PARTITION OF saga.attempt FOR VALUES IN (3);
CREATE TABLE saga.attempt_4 PARTITION OF saga.attempt FOR VALUES IN (4);
CREATE TABLE saga.attempt_5 PARTITION OF saga.attempt FOR VALUES IN (5);
CREATE TABLE saga.attempt_6 PARTITION OF saga.attempt FOR VALUES IN (6);
CREATE TABLE saga.attempt_7 PARTITION OF saga.attempt FOR VALUES IN (7);

CREATE TABLE saga.history_0 PARTITION OF saga.history FOR VALUES IN (0);
CREATE TABLE saga.history_1 PARTITION OF saga.history FOR VALUES IN (1);
CREATE TABLE saga.history_2 PARTITION OF saga.history FOR VALUES IN (2);
CREATE TABLE saga.history_3 PARTITION OF saga.history FOR VALUES IN (3);
CREATE TABLE saga.history_4 PARTITION OF saga.history FOR VALUES IN (4);
CREATE TABLE saga.history_5 PARTITION OF saga.history FOR VALUES IN (5);
CREATE TABLE saga.history_6 PARTITION OF saga.history FOR VALUES IN (6);
CREATE TABLE saga.history_7 PARTITION OF saga.history FOR VALUES IN (7);

CREATE TABLE saga.message (
    id           bigint NOT NULL,
    saga_id      bigint NOT NULL,
    slot         smallint NOT NULL,
    role         oid NOT NULL,
    kind         text NOT NULL,
    step         text,
    element      integer,
    reason       text,
    payload      jsonb,
    requested_by text NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT message_pkey PRIMARY KEY (saga_id, id)
);
COMMENT ON TABLE saga.message IS 'what somebody wants of a saga and the engine has not acted on yet';
COMMENT ON COLUMN saga.message.role IS 'role of the saga, whose worker is to act on it';
COMMENT ON COLUMN saga.message.kind IS
    'what people ask: cancel, pause, resume, retry, skip, abandon, migrate, signal; what the engine tells itself: place (a place or lock was granted), outcome (of a branch, or of a task whose lease is over), child (how one ended, to its parent), recall, release (to a child), deadlock';
COMMENT ON COLUMN saga.message.payload IS 'of a signal, an outcome, a child''s end; of migrate the version';

CREATE TABLE saga.branch (
    id           bigint NOT NULL,
    saga_id      bigint NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    role         oid NOT NULL,
    element      integer NOT NULL,
    attempt      integer NOT NULL,
    operation    saga.operation NOT NULL,
    slot         smallint NOT NULL,
    step         smallint NOT NULL,
    round        smallint NOT NULL,
    CONSTRAINT branch_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE saga.branch IS
    'attempts of local operations that run beside the saga''s own process: taken by another worker, which deletes the row and sends the outcome as a message in one transaction';
COMMENT ON COLUMN saga.branch.id IS 'from the sequence of the sagas'' ids, so that both can stand in one queue';
COMMENT ON COLUMN saga.branch.role IS 'role of the saga';
CREATE INDEX branch_saga ON saga.branch (saga_id);
COMMENT ON INDEX saga.branch_saga IS 'the branches of one saga';

CREATE TABLE saga.queue (
    id           integer GENERATED BY DEFAULT AS IDENTITY,
    name         text NOT NULL,
    owner        oid NOT NULL,
    owner_name   text NOT NULL,
    coordinator  uuid NOT NULL,
    paused       boolean NOT NULL DEFAULT false,
    breaker_failures integer NOT NULL DEFAULT 20,
    breaker_pause interval NOT NULL DEFAULT '1 s',
    breaker_max_pause interval NOT NULL DEFAULT '5 min',
    created_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT queue_pkey PRIMARY KEY (id),
    CONSTRAINT queue_name_key UNIQUE (name)
);
COMMENT ON TABLE saga.queue IS 'one row per queue of tasks: whose it is, and its settings';
COMMENT ON COLUMN saga.queue.coordinator IS 'identity of the coordinator where owner''s OID has a meaning';
COMMENT ON COLUMN saga.queue.breaker_failures IS 'so many failures in a row open its breaker; 0 = never';
COMMENT ON COLUMN saga.queue.breaker_pause IS 'for so long at first; twice as long with each failure of the task that is tried then ...';
COMMENT ON COLUMN saga.queue.breaker_max_pause IS '... up to this';

CREATE TABLE saga.queue_grant (
    queue_id     integer NOT NULL,
    role         oid NOT NULL,
    role_name    text NOT NULL,
    privilege    text NOT NULL,
    granted_by   text NOT NULL,
    granted_at   timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT queue_grant_pkey PRIMARY KEY (queue_id, privilege, role_name),
    CONSTRAINT queue_grant_privilege CHECK (privilege IN ('offer', 'participate'))
);
COMMENT ON TABLE saga.queue_grant IS 'who may take tasks of a queue, or define steps that offer them, without owning it';

CREATE SEQUENCE saga.task_id_seq;
COMMENT ON SEQUENCE saga.task_id_seq IS 'ids of tasks, in the order in which they were offered';

CREATE TABLE saga.task (
    id           bigint NOT NULL,
    saga_id      bigint NOT NULL,
    at           timestamptz,
    offered_at   timestamptz NOT NULL,
    claimed_at   timestamptz,
    expires_at   timestamptz,
    ended_at     timestamptz,
    lease_token  uuid,
    answer_hash  bigint,
    role         oid NOT NULL,
    queue_id     integer NOT NULL,
    definition_id integer NOT NULL,
    element      integer NOT NULL,
    attempt      integer NOT NULL,
    extensions   integer NOT NULL,
    operation    saga.operation NOT NULL,
    round        smallint NOT NULL,
    slot         smallint NOT NULL,
    claimed      boolean NOT NULL,
    cancelled    boolean NOT NULL,
    step         text NOT NULL,
    participant  text,
    outcome      text,
    progress     jsonb,
    answer       jsonb,
    input        jsonb,
    CONSTRAINT task_pkey PRIMARY KEY (id)
) WITH (fillfactor = 50);
COMMENT ON TABLE saga.task IS
    'one row per attempt of an operation that is offered to programs outside; deleted some time after it was answered: see saga.answer_retention';
COMMENT ON COLUMN saga.task.at IS
    'its place in the queue: when it was offered; of a claimed one the end of its lease, also when it was answered, until its saga has taken the answer; NULL when it has ended';
COMMENT ON COLUMN saga.task.expires_at IS 'no lease of it goes beyond this: the end of the attempt''s timeout; NULL = no limit';
COMMENT ON COLUMN saga.task.lease_token IS 'random, known to who has claimed it: an answer counts only with this';
COMMENT ON COLUMN saga.task.answer_hash IS 'of the answer, so that the same one is accepted twice';
COMMENT ON COLUMN saga.task.answer IS 'what its saga has not taken yet';
COMMENT ON COLUMN saga.task.input IS 'of a child step at a server: what its function has made for the child, until that was answered';
COMMENT ON COLUMN saga.task.attempt IS 'number of the attempt; 0: it is no attempt, and its saga does not wait for it: to ask a child at a server to go back, or to let all of them go that are there';
COMMENT ON COLUMN saga.task.role IS 'role of the saga';
COMMENT ON COLUMN saga.task.slot IS 'of the saga, when it was offered';
COMMENT ON COLUMN saga.task.cancelled IS 'claimed, and nobody needs it any more';
COMMENT ON COLUMN saga.task.outcome IS 'answered, expired (its lease) or withdrawn; NULL while it is open';
CREATE INDEX task_queue ON saga.task (queue_id, claimed, at, id) WHERE at IS NOT NULL;
COMMENT ON INDEX saga.task_queue IS 'open tasks of a queue: those that wait in the order they were offered, those in work by the end of their lease';

CREATE TABLE saga.server (
    name         text NOT NULL,
    paused       boolean NOT NULL DEFAULT false,
    breaker_failures integer NOT NULL DEFAULT 5,
    breaker_pause interval NOT NULL DEFAULT '1 s',
    breaker_max_pause interval NOT NULL DEFAULT '1 min',
    CONSTRAINT server_pkey PRIMARY KEY (name)
);
COMMENT ON TABLE saga.server IS 'settings of foreign servers, for steps that are done there; one without a row has the defaults';
COMMENT ON COLUMN saga.server.name IS 'of the foreign server';
COMMENT ON COLUMN saga.server.breaker_failures IS 'so many failures in a row, of the server and not of what is called there, open its breaker; 0 = never';
COMMENT ON COLUMN saga.server.breaker_pause IS 'for so long at first; twice as long with each failure of the call that is tried then ...';
COMMENT ON COLUMN saga.server.breaker_max_pause IS '... up to this';

CREATE TABLE saga.server_role (
    id           integer GENERATED BY DEFAULT AS IDENTITY (START WITH -1 INCREMENT BY -1 MINVALUE -2147483647 MAXVALUE -1),
    server       text NOT NULL,
    role         oid NOT NULL,
    role_name    text NOT NULL,
    once         boolean,
    saga_version text,
    purged_at    timestamptz,
    CONSTRAINT server_role_pkey PRIMARY KEY (id),
    CONSTRAINT server_role_key UNIQUE (server, role)
);
COMMENT ON TABLE saga.server_role IS 'one row per foreign server and role whose sagas have called it: the queue of their calls; its ids are negative, so that none is a queue''s';
COMMENT ON COLUMN saga.server_role.once IS 'is the extension there, so that each call has its effect once? NULL = nobody has been there yet';
COMMENT ON COLUMN saga.server_role.saga_version IS 'of the extension there, when somebody was there last';
COMMENT ON COLUMN saga.server_role.purged_at IS 'when it was last told which sagas it may forget';

CREATE TABLE saga.server_mark (
    taken_at     timestamptz NOT NULL,
    before       timestamptz NOT NULL,
    kept         uuid[] NOT NULL,
    CONSTRAINT server_mark_pkey PRIMARY KEY (taken_at)
);
COMMENT ON TABLE saga.server_mark IS 'what was final at some time, day by day: when these are older than their retention, servers are told that they may forget them';
COMMENT ON COLUMN saga.server_mark.before IS 'the sagas that were begun before then were final, ...';
COMMENT ON COLUMN saga.server_mark.kept IS '... but for these, by their tokens';

CREATE TABLE saga.barrier (
    token        uuid NOT NULL,
    element      integer NOT NULL,
    round        smallint NOT NULL,
    operation    saga.operation NOT NULL,
    void         boolean NOT NULL,
    begun_at     timestamptz NOT NULL,
    done_at      timestamptz NOT NULL DEFAULT now(),
    coordinator  uuid NOT NULL,
    step         text COLLATE "C" NOT NULL,
    role_name    text COLLATE "C" NOT NULL,
    answer       jsonb,
    CONSTRAINT barrier_pkey PRIMARY KEY (token, step, element, round, operation)
);
COMMENT ON TABLE saga.barrier IS 'what sagas of other databases have had done here, so that it is done once: see saga.participate()';
COMMENT ON COLUMN saga.barrier.token IS 'random, of the saga, which has it nowhere else';
COMMENT ON COLUMN saga.barrier.void IS 'its compensation came first: it is never to be done';
COMMENT ON COLUMN saga.barrier.begun_at IS 'when the saga began, by its own clock';
COMMENT ON COLUMN saga.barrier.coordinator IS 'identity of the database of the saga';
COMMENT ON COLUMN saga.barrier.role_name IS 'the role that has called: nobody else''s calls have to do with it';
CREATE INDEX barrier_begun ON saga.barrier (coordinator, role_name, begun_at);
COMMENT ON INDEX saga.barrier_begun IS 'what a coordinator may have forgotten: see saga.forget_barriers()';

CREATE TABLE saga.barrier_horizon (
    coordinator  uuid NOT NULL,
    role_name    text COLLATE "C" NOT NULL,
    before       timestamptz NOT NULL,
    kept         uuid[] NOT NULL,
    kept_since   timestamptz[] NOT NULL,
    CONSTRAINT barrier_horizon_pkey PRIMARY KEY (coordinator, role_name)
);
COMMENT ON TABLE saga.barrier_horizon IS 'what may have been forgotten in saga.barrier: sagas of that database that were begun before then, but for those kept';
COMMENT ON COLUMN saga.barrier_horizon.kept IS 'their tokens, in order';
COMMENT ON COLUMN saga.barrier_horizon.kept_since IS 'of each: that counts for calls of a saga begun since then; before, it was forgotten already';

CREATE TABLE saga.remote_parent (
    token        uuid NOT NULL,
    begun_at     timestamptz NOT NULL,
    coordinator  uuid NOT NULL,
    saga_id      bigint,
    parent_id    bigint,
    element      integer NOT NULL,
    attempt      integer NOT NULL,
    round        smallint NOT NULL,
    let_go       boolean NOT NULL DEFAULT false,
    step         text COLLATE "C" NOT NULL,
    role_name    text COLLATE "C" NOT NULL,
    CONSTRAINT remote_parent_pkey PRIMARY KEY (token, step, element, round, attempt),
    CONSTRAINT remote_parent_saga UNIQUE (saga_id)
);
COMMENT ON TABLE saga.remote_parent IS 'sagas that were begun for a saga of another database, and whose child each is: see saga.participate_child()';
COMMENT ON COLUMN saga.remote_parent.token IS 'random, of the parent, which has it nowhere else';
COMMENT ON COLUMN saga.remote_parent.begun_at IS 'when the parent began, by its own clock';
COMMENT ON COLUMN saga.remote_parent.coordinator IS 'identity of the parent''s database';
COMMENT ON COLUMN saga.remote_parent.saga_id IS 'the child; NULL = the parent has ended, and has no more of them';
COMMENT ON COLUMN saga.remote_parent.parent_id IS 'what the parent is called there';
COMMENT ON COLUMN saga.remote_parent.attempt IS 'of the parent''s step, that waits for it';
COMMENT ON COLUMN saga.remote_parent.let_go IS 'the parent has ended: the child reports to nobody';
COMMENT ON COLUMN saga.remote_parent.role_name IS 'the role that has called, and whose the child is';
CREATE INDEX remote_parent_begun ON saga.remote_parent (coordinator, role_name, begun_at);
COMMENT ON INDEX saga.remote_parent_begun IS 'what a coordinator may have forgotten: see saga.forget_barriers()';

CREATE TABLE saga.child_report (
    id           bigint GENERATED BY DEFAULT AS IDENTITY,
    saga_id      bigint NOT NULL,
    coordinator  uuid NOT NULL,
    role_name    text COLLATE "C" NOT NULL,
    report       jsonb NOT NULL,
    CONSTRAINT child_report_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE saga.child_report IS 'what children of sagas of other databases have to say to these, until it was taken: see saga.follow_children()';
COMMENT ON COLUMN saga.child_report.coordinator IS 'identity of the parent''s database';
COMMENT ON COLUMN saga.child_report.role_name IS 'the role that fetches it, and whose the child is';
CREATE INDEX child_report_reader ON saga.child_report (coordinator, role_name, id);
COMMENT ON INDEX saga.child_report_reader IS 'what there is for a coordinator and role, the oldest first';
CREATE INDEX child_report_saga ON saga.child_report (saga_id);
COMMENT ON INDEX saga.child_report_saga IS 'what one child has to say';

CREATE TABLE saga.key (
    definition   text NOT NULL,
    key          text NOT NULL,
    saga_id      bigint NOT NULL,
    slot         smallint NOT NULL,
    CONSTRAINT key_pkey PRIMARY KEY (definition, key)
);
COMMENT ON TABLE saga.key IS 'business keys: one saga per definition and key';

CREATE TABLE saga.lock (
    lock_key     text NOT NULL,
    position     bigint NOT NULL,
    saga_id      bigint NOT NULL,
    root_id      bigint NOT NULL,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    role         oid NOT NULL,
    slot         smallint NOT NULL,
    step         smallint,
    until_step   smallint,
    granted      boolean NOT NULL,
    places       integer,
    CONSTRAINT lock_pkey PRIMARY KEY (lock_key, granted, position)
);
COMMENT ON TABLE saga.lock IS 'sagas that hold, or wait in line for, a semantic lock or one of a limited number of places';
COMMENT ON COLUMN saga.lock.lock_key IS '"lock <owner of the definition> <name>"; "definition <id>" for a place, "step <id of the definition> <name>" for one in a step';
COMMENT ON COLUMN saga.lock.root_id IS 'saga at the top of its tree, all of which shares its locks';
COMMENT ON COLUMN saga.lock.since IS 'when it asked; when it was granted, once it was';
COMMENT ON COLUMN saga.lock.expires_at IS 'when it stops waiting; NULL = never';
COMMENT ON COLUMN saga.lock.step IS 'position of the step that asked; NULL = the saga, before its start';
COMMENT ON COLUMN saga.lock.until_step IS 'position of the step with whose end it is given back; NULL = with the saga''s';
COMMENT ON COLUMN saga.lock.places IS 'of a place in a step: how many sagas may be in it, says the version that this one is of';
CREATE INDEX lock_saga ON saga.lock (saga_id);
COMMENT ON INDEX saga.lock_saga IS 'what one saga holds and waits for';
-- an expression, so that what looks for a lock alone has the primary key only
CREATE INDEX lock_root ON saga.lock (root_id, (lock_key || ''));
COMMENT ON INDEX saga.lock_root IS 'what one tree of sagas holds and waits for';
CREATE SEQUENCE saga.lock_position_seq;
COMMENT ON SEQUENCE saga.lock_position_seq IS 'order in which sagas asked for a place';

CREATE TABLE saga.condition (
    kind         text COLLATE "C" NOT NULL,
    subject      text COLLATE "C" NOT NULL,
    since        timestamptz NOT NULL DEFAULT clock_timestamp(),
    saga_id      bigint,
    role         oid NOT NULL,
    role_name    text NOT NULL,
    definition   text,
    message      text,
    fields       jsonb NOT NULL,
    CONSTRAINT condition_pkey PRIMARY KEY (kind, subject)
);
COMMENT ON TABLE saga.condition IS 'what somebody should see to, as long as it holds: see saga.alerts; never dumped';
COMMENT ON COLUMN saga.condition.subject IS 'what it is about, for people; of one kind there is one of each';
COMMENT ON COLUMN saga.condition.role IS 'whose members see it';
COMMENT ON COLUMN saga.condition.fields IS 'what it is about, for programs: part of the alert';

CREATE TABLE saga.alert (
    id           bigint GENERATED ALWAYS AS IDENTITY,
    kind         text NOT NULL,
    saga_id      bigint,
    payload      jsonb NOT NULL,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    CONSTRAINT alert_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE saga.alert IS 'alerts that the coordinator has not sent yet: conditions that came or went; never dumped';

CREATE TABLE saga.invariant (
    id           integer GENERATED BY DEFAULT AS IDENTITY,
    revision     integer NOT NULL DEFAULT 0,
    checks       bigint NOT NULL DEFAULT 0,
    owner        oid NOT NULL,
    max_rows     integer NOT NULL,
    violations   integer NOT NULL DEFAULT 0,
    pause        boolean NOT NULL,
    to_pause     boolean NOT NULL DEFAULT false,
    truncated    boolean NOT NULL DEFAULT false,
    timeout      interval NOT NULL,
    every        interval,
    created_at   timestamptz NOT NULL DEFAULT now(),
    tried_at     timestamptz,
    checked_at   timestamptz,
    error_since  timestamptz,
    duration     interval,
    coordinator  uuid NOT NULL,
    name         text NOT NULL,
    definition   text,
    owner_name   text NOT NULL,
    search_path  text NOT NULL,
    time_zone    text NOT NULL,
    query        text NOT NULL,
    key          text[],
    error        jsonb,
    CONSTRAINT invariant_pkey PRIMARY KEY (id),
    CONSTRAINT invariant_name_key UNIQUE (name)
);
COMMENT ON TABLE saga.invariant IS 'queries that find what must not be, and how the last check of each went: see saga.add_invariant()';
COMMENT ON COLUMN saga.invariant.revision IS 'how often it was replaced: what a check has found counts for the one that it began with';
COMMENT ON COLUMN saga.invariant.checks IS 'how many were made, those that failed included';
COMMENT ON COLUMN saga.invariant.owner IS 'as whom the query is run';
COMMENT ON COLUMN saga.invariant.coordinator IS 'identity of the coordinator where owner''s OID has a meaning';
COMMENT ON COLUMN saga.invariant.to_pause IS 'its definition was disabled, and the sagas that run are not paused yet';
COMMENT ON COLUMN saga.invariant.truncated IS 'there were more rows than max_rows';
COMMENT ON COLUMN saga.invariant.checked_at IS 'what the last check that succeeded saw is what was committed then';
COMMENT ON COLUMN saga.invariant.search_path IS 'of who has added it, as are the names in the query';
COMMENT ON COLUMN saga.invariant.key IS 'columns that say which rows are the same violation; NULL = all';
COMMENT ON COLUMN saga.invariant.error IS 'why the last check failed; NULL = it did not';

CREATE TABLE saga.violation (
    id           bigint GENERATED BY DEFAULT AS IDENTITY,
    invariant_id integer NOT NULL,
    more_sagas   boolean NOT NULL DEFAULT false,
    since        timestamptz,
    first_seen   timestamptz NOT NULL,
    last_seen    timestamptz NOT NULL,
    ended_at     timestamptz,
    hash         text COLLATE "C" NOT NULL,
    "row"        jsonb NOT NULL,
    sagas        bigint[],
    CONSTRAINT violation_pkey PRIMARY KEY (id)
);
COMMENT ON TABLE saga.violation IS 'what the queries of saga.invariant have found; those that have ended for 90 days';
COMMENT ON COLUMN saga.violation.since IS 'the last check before first_seen, which did not find it; NULL = there was none';
COMMENT ON COLUMN saga.violation.hash IS 'of the columns that say which it is';
COMMENT ON COLUMN saga.violation.sagas IS 'sagas that may have made it so; NULL = they were not looked for yet';
COMMENT ON COLUMN saga.violation.more_sagas IS 'there are more of them';
CREATE UNIQUE INDEX violation_open ON saga.violation (invariant_id, hash) WHERE ended_at IS NULL;
COMMENT ON INDEX saga.violation_open IS 'those that hold, once each';
CREATE INDEX violation_ended ON saga.violation (invariant_id, ended_at) WHERE ended_at IS NOT NULL;
COMMENT ON INDEX saga.violation_ended IS 'those that have ended, to be deleted one day';

-- All of it is dumped with the database but coordinator, slot, condition and
-- alert: a copy is another coordinator, and sends nobody's alerts again.
SELECT pg_catalog.pg_extension_config_dump('saga.definition', '');
SELECT pg_catalog.pg_extension_config_dump('saga.definition_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.definition_version', '');
SELECT pg_catalog.pg_extension_config_dump('saga.definition_version_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.definition_grant', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_0', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_1', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_2', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_3', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_4', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_5', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_6', '');
SELECT pg_catalog.pg_extension_config_dump('saga.saga_7', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_0', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_1', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_2', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_3', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_4', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_5', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_6', '');
SELECT pg_catalog.pg_extension_config_dump('saga.step_7', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_0', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_1', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_2', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_3', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_4', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_5', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_6', '');
SELECT pg_catalog.pg_extension_config_dump('saga.attempt_7', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_0', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_1', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_2', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_3', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_4', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_5', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_6', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_7', '');
SELECT pg_catalog.pg_extension_config_dump('saga.history_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.message', '');
SELECT pg_catalog.pg_extension_config_dump('saga.branch', '');
SELECT pg_catalog.pg_extension_config_dump('saga.queue', '');
SELECT pg_catalog.pg_extension_config_dump('saga.queue_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.queue_grant', '');
SELECT pg_catalog.pg_extension_config_dump('saga.task_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.task', '');
SELECT pg_catalog.pg_extension_config_dump('saga.server', '');
SELECT pg_catalog.pg_extension_config_dump('saga.server_role', '');
SELECT pg_catalog.pg_extension_config_dump('saga.server_role_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.server_mark', '');
SELECT pg_catalog.pg_extension_config_dump('saga.barrier', '');
SELECT pg_catalog.pg_extension_config_dump('saga.barrier_horizon', '');
SELECT pg_catalog.pg_extension_config_dump('saga.remote_parent', '');
SELECT pg_catalog.pg_extension_config_dump('saga.child_report', '');
SELECT pg_catalog.pg_extension_config_dump('saga.child_report_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.key', '');
SELECT pg_catalog.pg_extension_config_dump('saga.lock', '');
SELECT pg_catalog.pg_extension_config_dump('saga.lock_position_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.invariant', '');
SELECT pg_catalog.pg_extension_config_dump('saga.invariant_id_seq', '');
SELECT pg_catalog.pg_extension_config_dump('saga.violation', '');
SELECT pg_catalog.pg_extension_config_dump('saga.violation_id_seq', '');

------------------------------------------------------------------------------
-- Definitions
------------------------------------------------------------------------------

-- The form of what saga.step() returns is its own; what is stored is described
-- in src/definition.c, above saga_definition_check().

CREATE FUNCTION saga.retry_policy(
    max_attempts integer DEFAULT 5,
    initial_delay interval DEFAULT '1 s',
    max_delay interval DEFAULT '5 min',
    multiplier double precision DEFAULT 2,
    jitter double precision DEFAULT 0.2,
    retry_on text[] DEFAULT NULL,
    fail_on text[] DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_retry_policy';
COMMENT ON FUNCTION saga.retry_policy(integer, interval, interval, double precision, double precision, text[], text[]) IS
    'when a failed attempt is made again: after initial_delay, each pause multiplier times the one before, at most max_delay, a part of it (jitter) random, up to max_attempts (0 = no limit); retry_on and fail_on name SQLSTATEs or classes of them. NULL is the default';

CREATE FUNCTION saga.step(
    name text,
    action text,
    compensation text DEFAULT NULL,
    pivot boolean DEFAULT false,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    compensation_timeout interval DEFAULT NULL,
    compensation_retry jsonb DEFAULT NULL,
    isolation text DEFAULT NULL,
    durable boolean DEFAULT false,
    after text[] DEFAULT NULL,
    only_if text DEFAULT NULL,
    foreach text DEFAULT NULL,
    parallel integer DEFAULT NULL,
    quorum integer DEFAULT NULL,
    confirmation text DEFAULT NULL,
    confirmation_timeout interval DEFAULT NULL,
    confirmation_retry jsonb DEFAULT NULL,
    savepoint boolean DEFAULT false,
    and_then text DEFAULT NULL,
    recoveries integer DEFAULT NULL,
    exclusive text DEFAULT NULL,
    exclusive_until text DEFAULT NULL,
    exclusive_timeout interval DEFAULT NULL,
    concurrency integer DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_step';
COMMENT ON FUNCTION saga.step(text, text, text, boolean, interval, jsonb, interval, jsonb, text, boolean, text[], text, text, integer, integer, text, interval, jsonb, boolean, text, integer, text, text, interval, integer) IS
    'a step for saga.define() that is done by a function of this database, undone by another, and confirmed by a third; functions are given as ''name'', ''schema.name'' or ''schema.name(type, ...)''';

CREATE FUNCTION saga.timer_step(
    name text,
    delay interval DEFAULT NULL,
    until text DEFAULT NULL,
    pivot boolean DEFAULT false,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    after text[] DEFAULT NULL,
    only_if text DEFAULT NULL,
    savepoint boolean DEFAULT false,
    and_then text DEFAULT NULL,
    recoveries integer DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_timer_step';
COMMENT ON FUNCTION saga.timer_step(text, interval, text, boolean, interval, jsonb, text[], text, boolean, text, integer) IS
    'a step for saga.define() that waits: for so long, or until the time that a function returns (timestamptz, or interval from now)';

CREATE FUNCTION saga.signal_step(
    name text,
    timeout interval DEFAULT NULL,
    otherwise jsonb DEFAULT NULL,
    pivot boolean DEFAULT false,
    after text[] DEFAULT NULL,
    only_if text DEFAULT NULL,
    savepoint boolean DEFAULT false,
    and_then text DEFAULT NULL,
    recoveries integer DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_signal_step';
COMMENT ON FUNCTION saga.signal_step(text, interval, jsonb, boolean, text[], text, boolean, text, integer) IS
    'a step for saga.define() that waits for saga.signal() with its name, whose payload is its result; after the timeout its result is "otherwise", or without that it fails';

CREATE FUNCTION saga.child_step(
    name text,
    definition text,
    input text DEFAULT NULL,
    pivot boolean DEFAULT false,
    timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    after text[] DEFAULT NULL,
    only_if text DEFAULT NULL,
    foreach text DEFAULT NULL,
    parallel integer DEFAULT NULL,
    quorum integer DEFAULT NULL,
    savepoint boolean DEFAULT false,
    and_then text DEFAULT NULL,
    recoveries integer DEFAULT NULL,
    exclusive text DEFAULT NULL,
    exclusive_until text DEFAULT NULL,
    exclusive_timeout interval DEFAULT NULL,
    concurrency integer DEFAULT NULL,
    server text DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_child_step';
COMMENT ON FUNCTION saga.child_step(text, text, text, boolean, interval, jsonb, text[], text, text, integer, integer, boolean, text, integer, text, text, interval, integer, text) IS
    'a step for saga.define() that is a saga of another definition: its result is the step''s, and it goes back when this saga goes back. A function of this database makes its input; without one it is this saga''s, or the element. With a foreign server the definition is one of that database, and so is its saga';

CREATE FUNCTION saga.external_step(
    name text,
    queue text,
    action text DEFAULT NULL,
    compensation text DEFAULT NULL,
    confirmation text DEFAULT NULL,
    pivot boolean DEFAULT false,
    timeout interval DEFAULT NULL,
    claim_timeout interval DEFAULT NULL,
    total_timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    compensation_timeout interval DEFAULT NULL,
    compensation_retry jsonb DEFAULT NULL,
    confirmation_timeout interval DEFAULT NULL,
    confirmation_retry jsonb DEFAULT NULL,
    after text[] DEFAULT NULL,
    only_if text DEFAULT NULL,
    foreach text DEFAULT NULL,
    parallel integer DEFAULT NULL,
    quorum integer DEFAULT NULL,
    savepoint boolean DEFAULT false,
    and_then text DEFAULT NULL,
    recoveries integer DEFAULT NULL,
    exclusive text DEFAULT NULL,
    exclusive_until text DEFAULT NULL,
    exclusive_timeout interval DEFAULT NULL,
    concurrency integer DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_external_step';
COMMENT ON FUNCTION saga.external_step(text, text, text, text, text, boolean, interval, interval, interval, jsonb, interval, jsonb, interval, jsonb, text[], text, text, integer, integer, boolean, text, integer, text, text, interval, integer) IS
    'a step for saga.define() that programs outside do: its operations are tasks of a queue, under the names that are given here, for saga.claim_tasks(); the action is called as the step if nothing is given. "timeout" is the longest from the claim of an attempt to its answer, claim_timeout the longest that the action waits to be claimed, total_timeout the longest that it takes with all its attempts; there is no limit if they are not given. only_if is a function of this database';

CREATE FUNCTION saga.remote_step(
    name text,
    server text,
    action text,
    compensation text DEFAULT NULL,
    confirmation text DEFAULT NULL,
    pivot boolean DEFAULT false,
    timeout interval DEFAULT NULL,
    total_timeout interval DEFAULT NULL,
    retry jsonb DEFAULT NULL,
    compensation_timeout interval DEFAULT NULL,
    compensation_retry jsonb DEFAULT NULL,
    confirmation_timeout interval DEFAULT NULL,
    confirmation_retry jsonb DEFAULT NULL,
    after text[] DEFAULT NULL,
    only_if text DEFAULT NULL,
    foreach text DEFAULT NULL,
    parallel integer DEFAULT NULL,
    quorum integer DEFAULT NULL,
    savepoint boolean DEFAULT false,
    and_then text DEFAULT NULL,
    recoveries integer DEFAULT NULL,
    exclusive text DEFAULT NULL,
    exclusive_until text DEFAULT NULL,
    exclusive_timeout interval DEFAULT NULL,
    concurrency integer DEFAULT NULL)
RETURNS jsonb
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_remote_step';
COMMENT ON FUNCTION saga.remote_step(text, text, text, text, text, boolean, interval, interval, jsonb, interval, jsonb, interval, jsonb, text[], text, text, integer, integer, boolean, text, integer, text, text, interval, integer) IS
    'a step for saga.define() that is done in another PostgreSQL database, at a foreign server of dblink_fdw or postgres_fdw: by the functions there that are named here, ''name'' or ''schema.name'', which take the context, one jsonb, and are called as whom the user mapping of the saga''s role says. "timeout" is the longest an attempt may take there, total_timeout the longest that the action takes with all its attempts. only_if is a function of this database';

CREATE FUNCTION saga.define(name text, VARIADIC steps jsonb[])
RETURNS integer
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_define';
COMMENT ON FUNCTION saga.define(text, jsonb[]) IS
    'make a saga definition, or a new version of one, and return the version; does nothing when the newest version has these steps. It belongs to the role that first defines it. Names, of steps too, have 1 to 63 bytes, no control characters, and no space at either end';

CREATE FUNCTION saga.impact(definition text, VARIADIC steps jsonb[])
RETURNS TABLE (step text, change text, detail text, sagas bigint)
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'saga_impact';
COMMENT ON FUNCTION saga.impact(text, jsonb[]) IS
    'what saga.define() would change with these steps, and stores nothing: one row per step, added, removed, changed (with the old and new values) or the same, and how many sagas of all versions that have not ended are at it';

CREATE FUNCTION saga.configure(
    name text,
    deadline interval DEFAULT NULL,
    retention interval DEFAULT NULL,
    max_running integer DEFAULT NULL,
    enabled boolean DEFAULT NULL,
    exclusive text DEFAULT NULL,
    exclusive_until text DEFAULT NULL,
    exclusive_timeout interval DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_configure';
COMMENT ON FUNCTION saga.configure(text, interval, interval, integer, boolean, text, text, interval) IS
    'set what belongs to a whole definition; NULL leaves a setting as it is, deadline => ''0'' and max_running => 0 remove the limit. New deadlines count for sagas begun from then on. Sagas of the owner''s definitions whose input has the same value at "exclusive" take turns, from their start to their end or to the end of step "exclusive_until"; exclusive => '''' removes that';

CREATE FUNCTION saga.drop_definition(name text, force boolean DEFAULT false)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_drop_definition';
COMMENT ON FUNCTION saga.drop_definition(text, boolean) IS
    'remove a definition with its grants and business keys; refused while sagas of it are not final, unless forced: then they go on with the version they began with';

CREATE FUNCTION saga.grant_begin(definition text, role name)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_grant_begin';
COMMENT ON FUNCTION saga.grant_begin(text, name) IS
    'let a role and its members begin sagas of a definition (''public'': everyone who may use saga at all)';

CREATE FUNCTION saga.revoke_begin(definition text, role name)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_revoke_begin';
COMMENT ON FUNCTION saga.revoke_begin(text, name) IS
    'take back what saga.grant_begin() gave; sagas that have begun go on';

------------------------------------------------------------------------------
-- Sagas
------------------------------------------------------------------------------

CREATE FUNCTION saga.begin(
    definition text,
    input jsonb DEFAULT '{}',
    key text DEFAULT NULL,
    start_at timestamptz DEFAULT NULL,
    deadline timestamptz DEFAULT NULL,
    traceparent text DEFAULT NULL,
    on_duplicate text DEFAULT 'return',
    trust_definition boolean DEFAULT false)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_begin';
COMMENT ON FUNCTION saga.begin(text, jsonb, text, timestamptz, timestamptz, text, text, boolean) IS
    'begin a saga of the newest version of a definition, as the current user, and return its id: it exists if and only if this transaction commits. When the definition already has a saga with this key, on_duplicate says whether to return its id, to raise an error, or to begin a new one if that one has ended';

CREATE FUNCTION saga.cancel(saga_id bigint, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_cancel';
COMMENT ON FUNCTION saga.cancel(bigint, text) IS
    'ask a saga whose pivot has not succeeded to go back: what has succeeded is compensated';

CREATE FUNCTION saga.pause(saga_id bigint, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_pause';
COMMENT ON FUNCTION saga.pause(bigint, text) IS
    'ask a saga to begin no further attempt until saga.resume(); its deadline waits too';

CREATE FUNCTION saga.resume(saga_id bigint, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_resume';
COMMENT ON FUNCTION saga.resume(bigint, text) IS
    'let a paused saga go on where it was';

CREATE FUNCTION saga.retry(saga_id bigint, reason text DEFAULT NULL, step text DEFAULT NULL, element integer DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_retry';
COMMENT ON FUNCTION saga.retry(bigint, text, text, integer) IS
    'attempt now what is stuck, or waits for its next attempt, with all attempts of its policy before it again';

CREATE FUNCTION saga.skip(saga_id bigint, reason text DEFAULT NULL, step text DEFAULT NULL, element integer DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_skip';
COMMENT ON FUNCTION saga.skip(bigint, text, text, integer) IS
    'take what is stuck, or waits for its next attempt, for done by hand, and go on';

CREATE FUNCTION saga.abandon(saga_id bigint, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_abandon';
COMMENT ON FUNCTION saga.abandon(bigint, text) IS
    'close a saga as it is: nothing more is attempted, nothing is undone';

CREATE FUNCTION saga.migrate(saga_id bigint, version integer DEFAULT NULL, reason text DEFAULT NULL)
RETURNS bigint LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_migrate';
COMMENT ON FUNCTION saga.migrate(bigint, integer, text) IS
    'ask a saga to go on with another version of its definition, the newest one if none is given; an error says which of the steps that it has done do not have the same meaning there';

CREATE FUNCTION saga.signal(saga_id bigint, signal text, payload jsonb DEFAULT NULL, on_duplicate text DEFAULT 'error')
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_signal';
COMMENT ON FUNCTION saga.signal(bigint, text, jsonb, text) IS
    'send a saga the signal that its step of this name waits for, or will wait for: the payload is the step''s result. The first one counts: on a second one on_duplicate says whether to raise an error or to ignore it, which returns false';

CREATE FUNCTION saga.signal(definition text, key text, signal text, payload jsonb DEFAULT NULL, on_duplicate text DEFAULT 'error')
RETURNS boolean LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_signal_by_key';
COMMENT ON FUNCTION saga.signal(text, text, text, jsonb, text) IS
    'the same, for the saga of a definition that has this key';

CREATE PROCEDURE saga.wait(saga_id bigint, timeout interval DEFAULT '1 min', INOUT status text DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_wait';
COMMENT ON PROCEDURE saga.wait(bigint, interval, text) IS
    'wait until a saga is final, or for the timeout, and return its status; holds no snapshot and no lock meanwhile';

CREATE FUNCTION saga.wait_within(saga_id bigint, timeout interval DEFAULT '10 s')
RETURNS text LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_wait_within';
COMMENT ON FUNCTION saga.wait_within(bigint, interval) IS
    'wait for at most a minute until a saga is final, and return its status; holds the caller''s snapshot: use CALL saga.wait() where possible';

CREATE PROCEDURE saga.run(saga_id bigint, INOUT status text DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_run';
COMMENT ON PROCEDURE saga.run(bigint, text) IS
    'advance one saga of the caller''s own in this session until it is final or waits, and return its status';

CREATE PROCEDURE saga.recover(
    max bigint DEFAULT 1000,
    time_budget interval DEFAULT '1 min',
    INOUT operations bigint DEFAULT NULL,
    INOUT finished bigint DEFAULT NULL,
    INOUT remaining boolean DEFAULT NULL,
    INOUT leases bigint DEFAULT NULL,
    INOUT woken bigint DEFAULT NULL,
    INOUT unserved text[] DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_recover';
COMMENT ON PROCEDURE saga.recover(bigint, interval, bigint, bigint, boolean, bigint, bigint, text[]) IS
    'see to what is due: end leases that are over, wake the workers of the roles that have sagas due, and where the caller''s have none advance the caller''s own sagas in this session, at most so many and for so long. Returns how many operations were attempted here, how many sagas became final, whether max or time_budget left some over, how many leases were ended, how many roles'' workers were woken, and the roles whose sagas are due and have no workers. May be called at any time and twice at once';

CREATE PROCEDURE saga.adopt(INOUT adopted bigint DEFAULT NULL, INOUT unbound text[] DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_adopt';
COMMENT ON PROCEDURE saga.adopt(bigint, text[]) IS
    'in a restored or copied database: make its unfinished sagas this coordinator''s own and bind their roles by name, so that they go on; returns how many, and the names for which there is no role';

CREATE FUNCTION saga.fail(reason text, detail text DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_fail';
COMMENT ON FUNCTION saga.fail(text, text) IS
    'in a step: let it fail for good, whatever its retry policy says';

CREATE FUNCTION saga.fail(reason text, detail jsonb)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_fail_jsonb';
COMMENT ON FUNCTION saga.fail(text, jsonb) IS
    'in a step: let it fail for good, whatever its retry policy says';

CREATE FUNCTION saga.retry_later(delay interval, reason text DEFAULT NULL)
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_retry_later';
COMMENT ON FUNCTION saga.retry_later(interval, text) IS
    'in a step: undo what it did, and attempt it again after the delay; does not count against its retry policy';

CREATE FUNCTION saga.lock(name text, timeout interval DEFAULT '1 hour')
RETURNS void LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_lock';
COMMENT ON FUNCTION saga.lock(text, interval) IS
    'in a step: take a semantic lock, which the saga keeps until it ends. Returns at once if it has it; else what the step did is undone, and it is attempted again, uncounted, when the saga has the lock; when the timeout passes first (0 = none) the step fails';

------------------------------------------------------------------------------
-- Participants outside
--
-- An external step is offered as a task of a queue.  A participant is a role
-- that may take its tasks: see saga.grant_participant().  What it answers is
-- part of its own transaction.
------------------------------------------------------------------------------

CREATE FUNCTION saga.claim_tasks(
    queue text,
    max integer DEFAULT 10,
    lease interval DEFAULT '30 s',
    participant text DEFAULT NULL,
    OUT id bigint,
    OUT lease_token uuid,
    OUT saga_id bigint,
    OUT definition text,
    OUT step text,
    OUT element integer,
    OUT operation saga.operation,
    OUT task text,
    OUT payload jsonb,
    OUT attempt integer,
    OUT idempotency_key text,
    OUT traceparent text,
    OUT lease_until timestamptz)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'saga_claim_tasks';
COMMENT ON FUNCTION saga.claim_tasks(text, integer, interval, text) IS
    'take up to "max" tasks of a queue, the oldest first, for the time of the lease: nobody else gets them before it is over. They are this participant''s once the transaction has committed. "task" is what the step calls the operation; the payload is the context that a local step would get; the idempotency key is the same for every attempt of one operation; the lease token goes with the answer';

CREATE FUNCTION saga.complete_task(id bigint, lease_token uuid, result jsonb DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_complete_task';
COMMENT ON FUNCTION saga.complete_task(bigint, uuid, jsonb) IS
    'answer a task: it is done, and this is its result. Counts when this transaction commits; raises SG030 if the lease was lost, SG031 if another answer was given; the same answer may be sent again: false says that it was';

CREATE FUNCTION saga.complete_tasks(ids bigint[], lease_tokens uuid[], results jsonb[] DEFAULT NULL, skip_lost boolean DEFAULT false)
RETURNS SETOF bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_complete_tasks';
COMMENT ON FUNCTION saga.complete_tasks(bigint[], uuid[], jsonb[], boolean) IS
    'the same for several tasks: returns the ids of those whose answer was accepted. A lost lease is an error for all of them, unless skip_lost leaves that task out';

CREATE FUNCTION saga.fail_task(
    id bigint,
    lease_token uuid,
    error text,
    retryable boolean DEFAULT true,
    retry_after interval DEFAULT NULL,
    outcome_unknown boolean DEFAULT false,
    detail text DEFAULT NULL,
    sqlstate text DEFAULT NULL)
RETURNS boolean
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_fail_task';
COMMENT ON FUNCTION saga.fail_task(bigint, uuid, text, boolean, interval, boolean, text, text) IS
    'answer a task: it has failed, and had no effect; outcome_unknown says that it may have had one all the same. retryable => false means for good, as saga.fail() does; else the step''s policy decides about another attempt, after retry_after if that is given, or by the sqlstate. Counts, returns and raises as saga.complete_task() does';

CREATE FUNCTION saga.fail_tasks(
    ids bigint[],
    lease_tokens uuid[],
    errors text[],
    retryable boolean DEFAULT true,
    retry_after interval DEFAULT NULL,
    outcome_unknown boolean DEFAULT false,
    skip_lost boolean DEFAULT false)
RETURNS SETOF bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_fail_tasks';
COMMENT ON FUNCTION saga.fail_tasks(bigint[], uuid[], text[], boolean, interval, boolean, boolean) IS
    'the same for several tasks: returns the ids of those whose answer was accepted. A lost lease is an error for all of them, unless skip_lost leaves that task out';

CREATE FUNCTION saga.extend_lease(
    id bigint,
    lease_token uuid,
    lease interval DEFAULT '30 s',
    progress jsonb DEFAULT NULL,
    OUT lease_until timestamptz,
    OUT cancel_requested boolean)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_extend_lease';
COMMENT ON FUNCTION saga.extend_lease(bigint, uuid, interval, jsonb) IS
    'keep a task for so long from now on, which may be less than it was, and not beyond the timeout of the attempt; progress is what saga.tasks shows. cancel_requested says that nobody needs it any more: complete it, fail it, or release it if it was not begun. Raises SG030 if the lease was lost';

CREATE FUNCTION saga.extend_leases(
    ids bigint[],
    lease_tokens uuid[],
    lease interval DEFAULT '30 s',
    progress jsonb[] DEFAULT NULL,
    skip_lost boolean DEFAULT false,
    OUT id bigint,
    OUT lease_until timestamptz,
    OUT cancel_requested boolean)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_extend_leases';
COMMENT ON FUNCTION saga.extend_leases(bigint[], uuid[], interval, jsonb[], boolean) IS
    'the same for several tasks. A lost lease is an error for all of them, unless skip_lost leaves that task out';

CREATE FUNCTION saga.release_task(id bigint, lease_token uuid)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_release_task';
COMMENT ON FUNCTION saga.release_task(bigint, uuid) IS
    'give back a task that was not begun: it is offered again at once, if it is still needed, and the attempt does not count. Raises SG030 if the lease was lost';

CREATE FUNCTION saga.release_tasks(ids bigint[], lease_tokens uuid[], skip_lost boolean DEFAULT false)
RETURNS SETOF bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_release_tasks';
COMMENT ON FUNCTION saga.release_tasks(bigint[], uuid[], boolean) IS
    'the same for several tasks: returns the ids of those that were given back. A lost lease is an error for all of them, unless skip_lost leaves that task out';

CREATE FUNCTION saga.create_queue(queue text, owner name DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_create_queue';
COMMENT ON FUNCTION saga.create_queue(text, name) IS
    'make a queue, for the current user or for a role that has given it its privileges. The first definition that names a queue makes it too. Its name has 1 to 58 bytes, no control characters, and no space at either end; participants LISTEN on the channel saga_<name>';

CREATE FUNCTION saga.drop_queue(queue text)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_drop_queue';
COMMENT ON FUNCTION saga.drop_queue(text) IS
    'remove a queue of one''s own, with its grants; refused while it has open tasks, or a definition or a saga that has not ended names it';

CREATE FUNCTION saga.configure_queue(
    queue text,
    breaker_failures integer DEFAULT NULL,
    breaker_pause interval DEFAULT NULL,
    breaker_max_pause interval DEFAULT NULL,
    paused boolean DEFAULT NULL,
    owner name DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_configure_queue';
COMMENT ON FUNCTION saga.configure_queue(text, integer, interval, interval, boolean, name) IS
    'change the settings of a queue; NULL leaves one as it is. After so many failures in a row (0 = never) nobody gets its tasks for breaker_pause, then one is tried; each one that fails doubles the pause, up to breaker_max_pause. While it is paused nobody gets its tasks: operators may say so too';

CREATE FUNCTION saga.reset_breaker(queue text DEFAULT NULL, server text DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_reset_breaker';
COMMENT ON FUNCTION saga.reset_breaker(text, text) IS
    'let participants have the tasks of a queue again, or a foreign server its calls, whose failures had stopped that; for its owner and operators';

CREATE FUNCTION saga.configure_server(
    server text,
    breaker_failures integer DEFAULT NULL,
    breaker_pause interval DEFAULT NULL,
    breaker_max_pause interval DEFAULT NULL,
    paused boolean DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_configure_server';
COMMENT ON FUNCTION saga.configure_server(text, integer, interval, interval, boolean) IS
    'change what holds for calls to a foreign server; NULL leaves it as it is. After so many failures in a row of the server itself (0 = never) a role''s calls wait for breaker_pause, then one is tried; each one that fails doubles the pause, up to breaker_max_pause. While it is paused nothing is called there. For its owner and operators';

CREATE FUNCTION saga.check_server(server text,
    OUT server text, OUT role text, OUT reachable boolean, OUT once boolean,
    OUT saga_version text, OUT server_version text, OUT in_recovery boolean,
    OUT round_trip interval, OUT error text)
RETURNS record
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_check_server';
COMMENT ON FUNCTION saga.check_server(text) IS
    'connect to a foreign server as the steps of the current user''s sagas do, and say what is there, or what is wrong; "once": are calls made once there, by the extension on the other side?';

CREATE FUNCTION saga.grant_participant(role name, queue text)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_grant_participant';
COMMENT ON FUNCTION saga.grant_participant(name, text) IS
    'let a role, and its members, take and answer the tasks of a queue of one''s own, and see them in saga.queues, saga.tasks and saga.participants. It gets the privileges on those functions and views too, and nothing else. A superuser makes the queue with that, if there is none';

CREATE FUNCTION saga.revoke_participant(role name, queue text)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_revoke_participant';
COMMENT ON FUNCTION saga.revoke_participant(name, text) IS
    'take that back: tasks that the role has claimed it cannot answer any more. The privileges on functions and views stay: they do nothing for a role that has no queue';

CREATE FUNCTION saga.grant_offer(queue text, role name)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_grant_offer';
COMMENT ON FUNCTION saga.grant_offer(text, name) IS
    'let a role define steps that offer tasks to a queue of one''s own';

CREATE FUNCTION saga.revoke_offer(queue text, role name)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_revoke_offer';
COMMENT ON FUNCTION saga.revoke_offer(text, name) IS
    'take that back: the next action that a definition of the role''s offers there fails; compensations are offered all the same';

------------------------------------------------------------------------------
-- Called from other databases
--
-- A remote step of a saga elsewhere is done here by saga.participate(), by the
-- role that the other side connects as: see saga.grant_remote().
------------------------------------------------------------------------------

CREATE FUNCTION saga.participate(
    coordinator uuid,
    saga uuid,
    step text,
    operation text,
    function text,
    context jsonb,
    element integer DEFAULT -1,
    round integer DEFAULT 0,
    begun_at timestamptz DEFAULT NULL,
    OUT outcome text,
    OUT result jsonb)
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_participate';
COMMENT ON FUNCTION saga.participate(uuid, uuid, text, text, text, jsonb, integer, integer, timestamptz) IS
    'call function(context) for an operation of a saga of another database, once: "done"; if that was done before, the same result: "repeated"; a compensation of an action that was not done: "skipped", and the action is refused from then on. "coordinator" is the identity of that database, "saga" the token of the saga, "element" -1 if the step is not foreach, "begun_at" when the saga began. Both the function''s effect and the memory of it are part of this transaction';

CREATE FUNCTION saga.settle(pid integer)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_settle';
COMMENT ON FUNCTION saga.settle(integer) IS
    'when it returns, all that was committed here before is durable, as far as the current user''s synchronous_commit asks for it: so several calls of saga.participate() can commit asynchronously, and one wait for the disk is enough. "pid" is the process of the session that made them: in another one it is an error';

CREATE FUNCTION saga.forget_barriers(coordinator uuid, before timestamptz, kept uuid[])
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_forget_barriers';
COMMENT ON FUNCTION saga.forget_barriers(uuid, timestamptz, uuid[]) IS
    'the sagas of that database that were begun before then have ended, but for those with the tokens "kept": forget what saga.participate() has done for them as the current user, and refuse to do more. Returns how many rows were forgotten, 10000 at most: call it again while it is so many';

CREATE FUNCTION saga.participate_child(
    coordinator uuid,
    saga uuid,
    step text,
    operation text,
    definition text,
    context jsonb,
    element integer DEFAULT -1,
    round integer DEFAULT 0,
    begun_at timestamptz DEFAULT NULL,
    OUT outcome text,
    OUT result jsonb)
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_participate_child';
COMMENT ON FUNCTION saga.participate_child(uuid, uuid, text, text, text, jsonb, integer, integer, timestamptz) IS
    'the same for a child step: the action begins a saga of the definition, as the current user, once, and the result has its "saga_id"; its compensation asks that saga to go back, its confirmation lets it complete. Operation "recall" asks it to go back while it runs, and "release" lets all children of the parent go, which has ended. What becomes of the child is told by saga.follow_children(). The context is an object: "input", and what the parent says of itself: "saga_id", "attempt", "depth", "undoable", "traceparent"';

CREATE PROCEDURE saga.follow_children(
    coordinator uuid,
    acknowledged bigint[] DEFAULT NULL,
    timeout interval DEFAULT '30 s',
    INOUT reports jsonb DEFAULT NULL,
    INOUT history text DEFAULT NULL,
    INOUT echo text DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_follow_children';
COMMENT ON PROCEDURE saga.follow_children(uuid, bigint[], interval, jsonb, text, text) IS
    'wait until a saga that saga.participate_child() has begun for that database as the current user has something to report, or for the timeout, and return all reports, each until its "id" is acknowledged; holds no snapshot and no lock meanwhile. "history" is another one once this database has lost something: it was restored, or a standby took over; who gives another one is not kept waiting. "echo" comes back as it is';

------------------------------------------------------------------------------
-- Views
--
-- Views are checked as their owner, so each says itself whose rows it shows:
-- those of roles that the current user is a member of, everything to those
-- who were given saga.grant_monitor() or saga.grant_operator().  In a restored
-- dump an OID may be another role's: there the name has to match too.
------------------------------------------------------------------------------

CREATE FUNCTION saga.monitor_privilege() RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT true';
COMMENT ON FUNCTION saga.monitor_privilege() IS
    'who may execute this sees the sagas of all roles: see saga.grant_monitor()';

CREATE FUNCTION saga.operator_privilege() RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS 'SELECT true';
COMMENT ON FUNCTION saga.operator_privilege() IS
    'who may execute this may signal, cancel, pause, resume, retry, skip, abandon and migrate the sagas of all roles, pause their queues and reset their breakers: see saga.grant_operator()';

CREATE FUNCTION saga.sees_all() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.has_function_privilege('saga.monitor_privilege()', 'EXECUTE')
$$;
COMMENT ON FUNCTION saga.sees_all() IS
    'does the current user see the sagas of all roles?';

CREATE FUNCTION saga.sees_health() RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.has_function_privilege('saga.monitor_privilege()', 'EXECUTE')
        OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
$$;
COMMENT ON FUNCTION saga.sees_health() IS
    'does the current user see the numbers of the sagas of all roles, as members of pg_monitor do too?';

CREATE FUNCTION saga.workers_raw(
    OUT pid integer, OUT process text, OUT database oid, OUT role oid,
    OUT state text, OUT saga_id bigint, OUT step integer, OUT operation text,
    OUT attempt integer, OUT since timestamptz, OUT reason text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 20
AS 'MODULE_PATHNAME', 'saga_workers';
COMMENT ON FUNCTION saga.workers_raw() IS 'what is behind view saga.workers';

CREATE FUNCTION saga.rounds_raw(definition_id integer, recoveries smallint[])
RETURNS integer[]
LANGUAGE c STABLE PARALLEL RESTRICTED
AS 'MODULE_PATHNAME', 'saga_rounds_raw';
COMMENT ON FUNCTION saga.rounds_raw(integer, smallint[]) IS
    'for the views: of each step of a version the present round of a saga that has gone forward again so often, or -1 less that if the step is not on its way';

CREATE FUNCTION saga.explain_raw(saga_id bigint,
    OUT "position" integer, OUT kind text, OUT after text[], OUT only_if text,
    OUT foreach text, OUT elements integer, OUT quorum integer,
    OUT confirmation text, OUT recoveries integer, OUT recovered integer,
    OUT exclusive text, OUT round integer, OUT off boolean, OUT done boolean,
    OUT not_taken boolean, OUT goal boolean, OUT server text,
    OUT guarantee text, OUT action text, OUT compensation text,
    OUT pivot boolean, OUT and_then text, OUT child text, OUT queue text)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'saga_explain_raw';
COMMENT ON FUNCTION saga.explain_raw(bigint) IS 'what saga.explain() and saga.diagram() say of the steps of a saga';

CREATE FUNCTION saga.queues_raw(queue_id integer,
    most bigint DEFAULT 9223372036854775807,
    OUT ready bigint, OUT oldest_ready timestamptz, OUT claimed bigint,
    OUT oldest_claimed timestamptz, OUT next_lease_end timestamptz,
    OUT offered bigint, OUT completed bigint, OUT failed bigint,
    OUT expired bigint, OUT rate double precision, OUT failures_in_row integer,
    OUT breaker text, OUT breaker_until timestamptz, OUT participants integer)
RETURNS record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_queues_raw';
COMMENT ON FUNCTION saga.queues_raw(integer, bigint) IS
    'what is behind view saga.queues: nulls unless the current user may see the queue; no more than "most" tasks are counted';

CREATE FUNCTION saga.participants_raw(queue_id integer,
    OUT participant text, OUT last_seen timestamptz, OUT claimed bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE ROWS 16
AS 'MODULE_PATHNAME', 'saga_participants_raw';
COMMENT ON FUNCTION saga.participants_raw(integer) IS 'what is behind view saga.participants';

CREATE FUNCTION saga.servers_raw(queue_id integer,
    most bigint DEFAULT 9223372036854775807,
    OUT state text, OUT connections integer, OUT in_flight integer,
    OUT ready bigint, OUT oldest_ready timestamptz, OUT retry_at timestamptz,
    OUT calls bigint, OUT failed bigint, OUT lost bigint, OUT unreachable bigint,
    OUT latency_p50 interval, OUT latency_p99 interval,
    OUT breaker text, OUT breaker_until timestamptz, OUT last_call timestamptz,
    OUT last_error text, OUT last_error_at timestamptz)
RETURNS record
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_servers_raw';
COMMENT ON FUNCTION saga.servers_raw(integer, bigint) IS
    'what is behind view saga.servers: nulls unless the current user may see the calls of that role; no more than "most" that wait are counted';

CREATE FUNCTION saga.server_waits_raw(queue_id integer) RETURNS text
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_server_waits_raw';
COMMENT ON FUNCTION saga.server_waits_raw(integer) IS
    'for the views: why the calls of a role to a foreign server are not sent; NULL unless the current user may see that';

CREATE VIEW saga.definitions WITH (security_barrier) AS
    SELECT d.name, v.version, d.owner_name AS owner, d.enabled, d.max_running,
           d.deadline, d.retention,
           pg_catalog.jsonb_array_length(v.steps) AS steps,
           v.created_at AS version_created_at, d.created_at,
           d.exclusive, d.exclusive_until,
           NULLIF(d.exclusive_timeout, '0') AS exclusive_timeout, d.disabled_by
    FROM saga.definition d
    CROSS JOIN LATERAL (
        SELECT w.version, w.steps, w.created_at FROM saga.definition_version w
        WHERE w.name = d.name ORDER BY w.version DESC LIMIT 1) v
    WHERE (pg_catalog.pg_has_role(d.owner, 'USAGE')
           AND d.owner_name = pg_catalog.pg_get_userbyid(d.owner))
       OR EXISTS (SELECT FROM saga.definition_grant g
                  WHERE g.definition_id = d.id
                    AND (g.role = 0
                         OR (pg_catalog.pg_has_role(g.role, 'USAGE')
                             AND g.role_name = pg_catalog.pg_get_userbyid(g.role))))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.definitions IS
    'definitions that the current user owns or may begin, with their newest version';
COMMENT ON COLUMN saga.definitions.name IS 'what saga.begin() is given';
COMMENT ON COLUMN saga.definitions.version IS 'the newest one';
COMMENT ON COLUMN saga.definitions.owner IS 'role that may change it';
COMMENT ON COLUMN saga.definitions.enabled IS 'may sagas of it be begun?';
COMMENT ON COLUMN saga.definitions.max_running IS 'how many sagas of it run at once; NULL = no limit';
COMMENT ON COLUMN saga.definitions.deadline IS 'how long after its start a saga is to be past its pivot; NULL = no limit';
COMMENT ON COLUMN saga.definitions.retention IS 'how long sagas that have ended are kept';
COMMENT ON COLUMN saga.definitions.steps IS 'how many the newest version has';
COMMENT ON COLUMN saga.definitions.version_created_at IS 'when the newest version was defined';
COMMENT ON COLUMN saga.definitions.created_at IS 'when it was first defined';
COMMENT ON COLUMN saga.definitions.exclusive IS 'where in the input the value is by which its sagas take turns; NULL = they do not';
COMMENT ON COLUMN saga.definitions.exclusive_until IS 'step with whose end a saga lets the next one go on; NULL = with its own end';
COMMENT ON COLUMN saga.definitions.exclusive_timeout IS 'longest that a saga waits for its turn; NULL = no limit';
COMMENT ON COLUMN saga.definitions.disabled_by IS 'invariant whose violation has disabled it';

CREATE VIEW saga.definition_steps WITH (security_barrier) AS
    SELECT v.name AS definition, v.version, e.n::integer AS position,
           e.step ->> 'name' AS step, e.step ->> 'kind' AS kind,
           COALESCE((e.step ->> 'pivot')::boolean, false) AS pivot,
           COALESCE(e.step #>> '{action,function}', e.step #>> '{action,task}') AS action,
           COALESCE(e.step #>> '{compensation,function}', e.step #>> '{compensation,task}') AS compensation,
           pg_catalog.make_interval(secs => (e.step #>> '{action,timeout}')::double precision) AS timeout,
           e.step #> '{action,retry}' AS retry,
           pg_catalog.make_interval(secs => (e.step #>> '{compensation,timeout}')::double precision) AS compensation_timeout,
           e.step #> '{compensation,retry}' AS compensation_retry,
           e.step ->> 'isolation' AS isolation,
           COALESCE((e.step ->> 'durable')::boolean, false) AS durable,
           CASE WHEN e.step ? 'after'
                THEN ARRAY(SELECT pg_catalog.jsonb_array_elements_text(e.step -> 'after'))
                WHEN e.n = 1 THEN '{}'
                ELSE ARRAY[v.steps -> (e.n - 2)::integer ->> 'name'] END AS after,
           e.step #>> '{only_if,function}' AS only_if,
           e.step ->> 'foreach' AS foreach,
           (e.step ->> 'parallel')::integer AS parallel,
           (e.step ->> 'quorum')::integer AS quorum,
           COALESCE(e.step #>> '{confirmation,function}', e.step #>> '{confirmation,task}') AS confirmation,
           pg_catalog.make_interval(secs => (e.step #>> '{confirmation,timeout}')::double precision) AS confirmation_timeout,
           e.step #> '{confirmation,retry}' AS confirmation_retry,
           COALESCE((e.step ->> 'savepoint')::boolean, false) AS savepoint,
           CASE WHEN (e.step ->> 'savepoint')::boolean
                THEN COALESCE(e.step ->> 'and_then', 'retry') END AS and_then,
           CASE WHEN (e.step ->> 'savepoint')::boolean
                THEN COALESCE((e.step ->> 'recoveries')::integer, 1) END AS recoveries,
           e.step ->> 'exclusive' AS exclusive,
           e.step ->> 'exclusive_until' AS exclusive_until,
           CASE WHEN e.step ? 'exclusive' THEN pg_catalog.make_interval(secs =>
               NULLIF(COALESCE(e.step ->> 'exclusive_timeout', '3600'), '0')::double precision) END AS exclusive_timeout,
           (e.step ->> 'concurrency')::integer AS concurrency,
           pg_catalog.justify_hours(pg_catalog.make_interval(secs =>
               COALESCE(e.step ->> 'delay', e.step ->> 'timeout')::double precision)) AS wait,
           e.step -> 'otherwise' AS otherwise,
           e.step ->> 'definition' AS child,
           e.step ->> 'queue' AS queue,
           pg_catalog.justify_hours(pg_catalog.make_interval(secs =>
               (e.step ->> 'claim_timeout')::double precision)) AS claim_timeout,
           pg_catalog.justify_hours(pg_catalog.make_interval(secs =>
               (e.step ->> 'total_timeout')::double precision)) AS total_timeout,
           e.step ->> 'server' AS server,
           CASE WHEN e.step ->> 'kind' = 'remote' THEN
               CASE COALESCE(mine.once, any_role.once)
                    WHEN true THEN 'once' WHEN false THEN 'at least once' END END AS guarantee
    FROM saga.definition_version v
    JOIN saga.definition d ON d.name = v.name
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(v.steps) WITH ORDINALITY e(step, n)
    LEFT JOIN saga.server_role mine
        ON mine.server = e.step ->> 'server' AND mine.role_name = d.owner_name
    LEFT JOIN (SELECT r.server, pg_catalog.bool_and(r.once) AS once
               FROM saga.server_role r GROUP BY r.server) any_role
        ON any_role.server = e.step ->> 'server'
    WHERE (pg_catalog.pg_has_role(d.owner, 'USAGE')
           AND d.owner_name = pg_catalog.pg_get_userbyid(d.owner))
       OR EXISTS (SELECT FROM saga.definition_grant g
                  WHERE g.definition_id = d.id
                    AND (g.role = 0
                         OR (pg_catalog.pg_has_role(g.role, 'USAGE')
                             AND g.role_name = pg_catalog.pg_get_userbyid(g.role))))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.definition_steps IS
    'steps of all versions of the definitions that the current user owns or may begin';
COMMENT ON COLUMN saga.definition_steps.definition IS 'name of the definition';
COMMENT ON COLUMN saga.definition_steps.version IS 'version of the definition';
COMMENT ON COLUMN saga.definition_steps.position IS 'order in which they were given, from 1: none comes before one that it is "after"';
COMMENT ON COLUMN saga.definition_steps.step IS 'name of the step';
COMMENT ON COLUMN saga.definition_steps.kind IS
    'local: a function of this database; timer: waits for a time; signal: waits for saga.signal(); child: a saga of another definition; external: tasks for programs outside; remote: functions of another database';
COMMENT ON COLUMN saga.definition_steps.pivot IS 'once its action has succeeded the saga only goes forward';
COMMENT ON COLUMN saga.definition_steps.action IS
    'function that does it; of a timer the one that says until when, of a child the one that makes its input; of an external step what the participant is told to do, of a remote one the function there; NULL = none';
COMMENT ON COLUMN saga.definition_steps.compensation IS 'function that undoes it, likewise; NULL = nothing to undo';
COMMENT ON COLUMN saga.definition_steps.timeout IS 'longest an attempt of the action may take, of an external step from its claim on; NULL = saga.step_timeout, of an external step no limit';
COMMENT ON COLUMN saga.definition_steps.retry IS 'when a failed action is attempted again: see saga.retry_policy()';
COMMENT ON COLUMN saga.definition_steps.compensation_timeout IS 'longest an attempt of the compensation may take, likewise';
COMMENT ON COLUMN saga.definition_steps.compensation_retry IS 'when a failed compensation is attempted again';
COMMENT ON COLUMN saga.definition_steps.isolation IS 'isolation level of its transactions; NULL = default_transaction_isolation of the role';
COMMENT ON COLUMN saga.definition_steps.durable IS 'its commit is flushed at once, whatever synchronous_commit says';
COMMENT ON COLUMN saga.definition_steps.after IS 'steps that must have ended before it begins';
COMMENT ON COLUMN saga.definition_steps.only_if IS 'function that says whether it is taken; NULL = always';
COMMENT ON COLUMN saga.definition_steps.foreach IS 'where the array is for each of whose elements it is done; NULL = it is done once';
COMMENT ON COLUMN saga.definition_steps.parallel IS 'how many elements are worked on at once; NULL = no limit';
COMMENT ON COLUMN saga.definition_steps.quorum IS 'how many elements have to succeed; NULL = all';
COMMENT ON COLUMN saga.definition_steps.confirmation IS 'function that confirms it when every step has succeeded, likewise; NULL = nothing to confirm';
COMMENT ON COLUMN saga.definition_steps.confirmation_timeout IS 'longest an attempt of the confirmation may take, likewise';
COMMENT ON COLUMN saga.definition_steps.confirmation_retry IS 'when a failed confirmation is attempted again';
COMMENT ON COLUMN saga.definition_steps.savepoint IS 'when a later step fails, the saga goes back only to here, and forward again';
COMMENT ON COLUMN saga.definition_steps.and_then IS 'what comes after it then: retry, or the name of another step; NULL unless it is a savepoint';
COMMENT ON COLUMN saga.definition_steps.recoveries IS 'how often a saga may go forward again from it; NULL unless it is a savepoint';
COMMENT ON COLUMN saga.definition_steps.exclusive IS 'where the value is by which sagas take turns from this step on; NULL = they do not';
COMMENT ON COLUMN saga.definition_steps.exclusive_until IS 'step with whose end a saga lets the next one go on; NULL = with the saga''s end';
COMMENT ON COLUMN saga.definition_steps.exclusive_timeout IS 'longest that it waits for its turn; NULL = no limit';
COMMENT ON COLUMN saga.definition_steps.concurrency IS 'how many sagas may be in it at once; NULL = no limit';
COMMENT ON COLUMN saga.definition_steps.wait IS 'how long a timer waits, if no function says it; how long at most a signal is waited for, NULL = no limit';
COMMENT ON COLUMN saga.definition_steps.otherwise IS 'result of a signal step when no signal came in time; NULL = it fails then';
COMMENT ON COLUMN saga.definition_steps.child IS 'definition of the saga that a child step is';
COMMENT ON COLUMN saga.definition_steps.queue IS 'where the tasks of an external step are offered';
COMMENT ON COLUMN saga.definition_steps.claim_timeout IS 'longest the action of an external step waits to be claimed; NULL = no limit';
COMMENT ON COLUMN saga.definition_steps.total_timeout IS 'longest the action of an external or remote step takes with all its attempts; NULL = no limit';
COMMENT ON COLUMN saga.definition_steps.server IS 'foreign server at which a remote step is done, or the saga of a child step; NULL = here';
COMMENT ON COLUMN saga.definition_steps.guarantee IS
    'of a remote step: once, since extension saga is there, or at least once, when it was last looked at by the owner, else by any role; NULL = nobody has called that server yet';

-- What may be seen is decided here, once; saga.sagas, saga.alive and saga.ended
-- make of it what they show, and that only for the rows that a query wants:
-- whatever it asks of them, and in whatever order, it sees no others.
CREATE VIEW saga.sagas_raw WITH (security_barrier) AS
    SELECT s.id, v.name AS definition, v.version, s.key, s.status, s.role_name AS owner,
           s.step, s.waiting_for, s.due_at, s.input, s.error, s.created_at, s.start_at,
           s.started_at, s.finished_at, s.deadline, s.backward, s.suspect, s.traceparent,
           s.parent_id, s.root_id, s.coordinator, s.slot, v.steps,
           p.parent_id AS remote_parent_id, p.coordinator AS remote_coordinator
    FROM saga.saga s
    LEFT JOIN saga.definition_version v ON v.id = s.definition_id
    LEFT JOIN saga.remote_parent p ON p.saga_id = s.id
    WHERE (pg_catalog.pg_has_role(s.role, 'USAGE')
           AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.sagas_raw IS
    'what is behind the views saga.sagas, saga.alive and saga.ended: sagas of roles that the current user is a member of';
COMMENT ON COLUMN saga.sagas_raw.id IS 'column saga_id of the views';
COMMENT ON COLUMN saga.sagas_raw.definition IS 'name of the definition';
COMMENT ON COLUMN saga.sagas_raw.version IS 'version of the definition';
COMMENT ON COLUMN saga.sagas_raw.key IS 'business key';
COMMENT ON COLUMN saga.sagas_raw.status IS 'state of the saga';
COMMENT ON COLUMN saga.sagas_raw.owner IS 'role that began it';
COMMENT ON COLUMN saga.sagas_raw.step IS 'position of the step of the moment, from 0';
COMMENT ON COLUMN saga.sagas_raw.waiting_for IS 'what it waits for';
COMMENT ON COLUMN saga.sagas_raw.due_at IS 'when it is looked at next; NULL when it is final';
COMMENT ON COLUMN saga.sagas_raw.input IS 'what saga.begin() was given';
COMMENT ON COLUMN saga.sagas_raw.error IS 'what made it go back or get stuck';
COMMENT ON COLUMN saga.sagas_raw.created_at IS 'when it was begun';
COMMENT ON COLUMN saga.sagas_raw.start_at IS 'when it is to begin, if not at once';
COMMENT ON COLUMN saga.sagas_raw.started_at IS 'when its first attempt began';
COMMENT ON COLUMN saga.sagas_raw.finished_at IS 'when it became final';
COMMENT ON COLUMN saga.sagas_raw.deadline IS 'when it goes back unless its pivot has succeeded';
COMMENT ON COLUMN saga.sagas_raw.backward IS 'going back';
COMMENT ON COLUMN saga.sagas_raw.suspect IS 'its last attempt timed out or ended its process';
COMMENT ON COLUMN saga.sagas_raw.traceparent IS 'W3C trace context that saga.begin() was given';
COMMENT ON COLUMN saga.sagas_raw.parent_id IS 'saga whose step this one is; NULL = none, -1 = one of another database';
COMMENT ON COLUMN saga.sagas_raw.root_id IS 'the saga at the top of the tree; NULL = this one';
COMMENT ON COLUMN saga.sagas_raw.coordinator IS 'identity of the coordinator it belongs to';
COMMENT ON COLUMN saga.sagas_raw.slot IS 'leaf in which its rows are';
COMMENT ON COLUMN saga.sagas_raw.steps IS 'of its version, as stored';
COMMENT ON COLUMN saga.sagas_raw.remote_parent_id IS 'parent of another database, by its number there';
COMMENT ON COLUMN saga.sagas_raw.remote_coordinator IS 'identity of that database';

CREATE FUNCTION saga.result_raw(saga_id bigint, slot smallint) RETURNS jsonb
LANGUAGE c STABLE STRICT PARALLEL RESTRICTED COST 20
AS 'MODULE_PATHNAME', 'saga_result_raw';
COMMENT ON FUNCTION saga.result_raw(bigint, smallint) IS
    'for view saga.sagas: the result of the last step that has succeeded, of a saga that has completed or is held';

CREATE VIEW saga.sagas AS
    SELECT s.id AS saga_id, s.definition, s.version, s.key, s.status, s.owner,
           s.steps -> s.step::integer ->> 'name' AS step,
           CASE WHEN s.due_at IS NULL THEN NULL
                WHEN s.coordinator IS DISTINCT FROM
                     (SELECT c.id FROM saga.coordinator c
                      JOIN pg_catalog.pg_database d ON d.oid = c.database
                      WHERE d.datname = pg_catalog.current_database()) THEN 'saga.adopt()'
                ELSE s.waiting_for END AS waiting_for,
           CASE WHEN s.waiting_for IN ('next attempt', 'start time', 'timer')
                THEN s.due_at END AS next_attempt_at,
           s.input,
           CASE WHEN s.status IN ('completed', 'held')
                THEN saga.result_raw(s.id, s.slot) END AS result,
           s.error, s.created_at, s.start_at, s.started_at, s.finished_at, s.deadline,
           s.backward AS compensates, s.suspect, s.traceparent,
           NULLIF(s.parent_id, -1) AS parent_id, COALESCE(s.root_id, s.id) AS root_id,
           s.remote_parent_id, s.remote_coordinator, s.due_at IS NULL AS final
    FROM saga.sagas_raw s;
COMMENT ON VIEW saga.sagas IS
    'sagas, also the ones that have ended, of roles that the current user is a member of';
COMMENT ON COLUMN saga.sagas.saga_id IS 'what saga.begin() returned';
COMMENT ON COLUMN saga.sagas.definition IS 'name of the definition';
COMMENT ON COLUMN saga.sagas.version IS 'version that it was begun with, or was moved to by saga.migrate()';
COMMENT ON COLUMN saga.sagas.key IS 'business key, unique in the definition';
COMMENT ON COLUMN saga.sagas.status IS 'completed, compensated and abandoned are final; held: a child that is done and may still be compensated with its parent';
COMMENT ON COLUMN saga.sagas.owner IS 'role that began it, as which its steps run';
COMMENT ON COLUMN saga.sagas.step IS 'the step that is, or was last, attempted; of several one: see saga.steps';
COMMENT ON COLUMN saga.sagas.next_attempt_at IS 'when it goes on, while it waits for a time';
COMMENT ON COLUMN saga.sagas.input IS 'what saga.begin() was given';
COMMENT ON COLUMN saga.sagas.created_at IS 'when it was begun';
COMMENT ON COLUMN saga.sagas.start_at IS 'when it was to start, if not at once';
COMMENT ON COLUMN saga.sagas.started_at IS 'when its first attempt began';
COMMENT ON COLUMN saga.sagas.finished_at IS 'when it became final';
COMMENT ON COLUMN saga.sagas.deadline IS 'when it goes back unless its pivot has succeeded';
COMMENT ON COLUMN saga.sagas.traceparent IS 'W3C trace context that saga.begin() was given; of a child, that of its parent''s operation';
COMMENT ON COLUMN saga.sagas.waiting_for IS
    'what it waits for; NULL if it is final or a worker is to go on with it';
COMMENT ON COLUMN saga.sagas.result IS
    'result of its last step that has succeeded, once it has completed; of a foreach step the array of its elements'' results';
COMMENT ON COLUMN saga.sagas.parent_id IS 'saga of this database whose child it is; NULL = none';
COMMENT ON COLUMN saga.sagas.root_id IS 'saga at the top of its tree; itself if it has no parent in this database';
COMMENT ON COLUMN saga.sagas.remote_parent_id IS 'saga of another database whose child it is, by its number there; NULL = none';
COMMENT ON COLUMN saga.sagas.remote_coordinator IS 'identity of that database';
COMMENT ON COLUMN saga.sagas.final IS 'it has ended and will not change any more: completed, compensated or abandoned';
COMMENT ON COLUMN saga.sagas.error IS 'what made it go back or get stuck, the first cause';
COMMENT ON COLUMN saga.sagas.compensates IS 'it goes back, or has gone back';
COMMENT ON COLUMN saga.sagas.suspect IS 'its last attempt timed out or ended its process: it runs alone';

CREATE VIEW saga.steps WITH (security_barrier) AS
    SELECT s.id AS saga_id, p.n::integer AS position,
           e.step ->> 'name' AS step,
           COALESCE(t.operation, 'action') AS operation,
           COALESCE(NULLIF(t.status, 'pending'),
                    CASE WHEN s.due_at IS NULL OR s.status = 'held' OR p.off
                              OR (s.backward AND s.goal < 0)
                         THEN 'skipped'::saga.operation_status ELSE 'pending' END) AS status,
           COALESCE(t.attempts, 0) AS attempts, t.result, t.error,
           t.started_at, t.finished_at,
           CASE WHEN t.status = 'waiting' THEN t.due_at END AS next_attempt_at,
           COALESCE(t.failures, 0) AS failures, COALESCE(t.crashes, 0) AS crashes,
           CASE WHEN e.step ? 'foreach' THEN t.element END AS element,
           COALESCE(t.round, p.round) AS round, t.child_id,
           CASE WHEN t.status = 'running' THEN NULLIF(t.due_at, 'infinity') END AS waits_until,
           COALESCE(t.cancelled, false) AS cancelled,
           COALESCE(t.surplus, false) AS surplus,
           COALESCE(t.unknown, false) AS unknown,
           t.task_id,
           CASE WHEN k.outcome IS NOT NULL
                THEN pg_catalog.format('a worker, for the end of task %s', k.id)
                WHEN y.server IS NOT NULL AND k.claimed AND k.progress ? 'saga_id'
                THEN pg_catalog.format('saga %s of %s at server %s, since %s', k.progress ->> 'saga_id',
                         e.step ->> 'definition', y.server, k.claimed_at)
                WHEN y.server IS NOT NULL AND k.claimed
                THEN pg_catalog.format('the answer of server %s to %s, called at %s', y.server,
                         COALESCE(e.step #>> ARRAY[t.operation::text, 'task'],
                                  e.step ->> 'definition'), k.claimed_at)
                WHEN y.server IS NOT NULL
                THEN pg_catalog.format('server %s, for %s, since %s', y.server,
                         COALESCE(e.step #>> ARRAY[t.operation::text, 'task'],
                                  e.step ->> 'definition'), k.offered_at)
                     || COALESCE('; ' || saga.server_waits_raw(y.id), '')
                WHEN k.claimed
                THEN pg_catalog.format('participant %s, for %s, lease until %s',
                         COALESCE(k.participant, 'of queue ' || q.name),
                         e.step #>> ARRAY[t.operation::text, 'task'], k.at)
                     || COALESCE(', progress ' || k.progress::text, '')
                WHEN k.id IS NOT NULL
                THEN pg_catalog.format('a participant of queue %s, for %s, since %s',
                         q.name, e.step #>> ARRAY[t.operation::text, 'task'], k.offered_at)
                     || CASE WHEN q.paused THEN '; the queue is paused'
                             ELSE COALESCE((SELECT '; its breaker is open until ' || b.breaker_until
                                            FROM saga.queues_raw(q.id) b WHERE b.breaker = 'open'), '') END
           END AS waiting_for
    FROM saga.saga s
    JOIN saga.definition_version v ON v.id = s.definition_id
    CROSS JOIN LATERAL (
        SELECT CASE WHEN v.steps @> '[{"savepoint": true}]'
                    THEN saga.rounds_raw(v.id, s.recoveries) END AS rounds
        OFFSET 0) r
    -- with savepoints a second time: for the steps of which only earlier rounds
    -- have rows
    CROSS JOIN LATERAL pg_catalog.jsonb_array_elements(
        CASE WHEN r.rounds IS NULL THEN v.steps ELSE v.steps || v.steps END)
        WITH ORDINALITY e(step, i)
    CROSS JOIN LATERAL (
        SELECT e.i > pg_catalog.cardinality(r.rounds) AS again,
               CASE WHEN e.i > pg_catalog.cardinality(r.rounds)
                    THEN e.i - pg_catalog.cardinality(r.rounds) ELSE e.i END AS n) i
    CROSS JOIN LATERAL (
        SELECT i.n, COALESCE(r.rounds[i.n] < 0, false) AS off,
               COALESCE(CASE WHEN r.rounds[i.n] < 0 THEN -1 - r.rounds[i.n]
                             ELSE r.rounds[i.n] END, 0) AS round) p
    LEFT JOIN saga.step t
        ON t.saga_id = s.id AND t.slot = s.slot AND t.step = p.n - 1
       AND (t.round = p.round OR i.again IS NOT TRUE)
    -- joined, not looked up for each row: what that would be thought to cost
    -- has every query of this view compiled
    LEFT JOIN saga.task k ON k.id = t.task_id AND t.status = 'running'
    LEFT JOIN saga.queue q ON q.id = k.queue_id
    LEFT JOIN saga.server_role y ON y.id = k.queue_id
    WHERE CASE WHEN i.again THEN t.saga_id IS NULL AND p.round > 0
               ELSE t.saga_id IS NOT NULL OR p.round = 0 END
      AND ((pg_catalog.pg_has_role(s.role, 'USAGE')
            AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                 OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
           OR (SELECT saga.sees_all()));
COMMENT ON VIEW saga.steps IS
    'operations of sagas: one row per step that is still to come, one per operation that was tried or skipped';
COMMENT ON COLUMN saga.steps.saga_id IS 'the saga';
COMMENT ON COLUMN saga.steps.position IS 'order of the steps in the definition, from 1';
COMMENT ON COLUMN saga.steps.step IS 'name of the step';
COMMENT ON COLUMN saga.steps.operation IS 'action; compensation, which undoes it; or confirmation, when all steps have succeeded';
COMMENT ON COLUMN saga.steps.status IS
    'running: handed out to another worker, or waits for a time, a signal, a child saga, a participant or another database; skipped: not taken, not needed, or a person said so';
COMMENT ON COLUMN saga.steps.attempts IS 'tries that ended, of whatever outcome';
COMMENT ON COLUMN saga.steps.result IS 'what its function returned; the payload of a signal, the result of a child saga, what a participant or another database answered';
COMMENT ON COLUMN saga.steps.error IS 'of the last attempt that failed, also if a later one succeeded';
COMMENT ON COLUMN saga.steps.started_at IS 'when its first attempt began';
COMMENT ON COLUMN saga.steps.finished_at IS 'when its last attempt ended';
COMMENT ON COLUMN saga.steps.next_attempt_at IS 'when it is attempted again, while it waits for that';
COMMENT ON COLUMN saga.steps.failures IS 'attempts that count against its retry policy, since the last saga.retry()';
COMMENT ON COLUMN saga.steps.crashes IS 'processes that ended during it, likewise';
COMMENT ON COLUMN saga.steps.element IS
    'of a foreach step: position in its array, from 0; NULL if none of its elements has begun. Elements still to come have no row';
COMMENT ON COLUMN saga.steps.round IS 'how often a savepoint before the step had turned the saga forward again';
COMMENT ON COLUMN saga.steps.child_id IS 'saga that was begun for a child step';
COMMENT ON COLUMN saga.steps.waits_until IS 'of a running one: when its time is over, if nothing comes before; NULL = no limit';
COMMENT ON COLUMN saga.steps.cancelled IS 'running, and asked to give up';
COMMENT ON COLUMN saga.steps.surplus IS 'came after the quorum had been reached without it, and is undone';
COMMENT ON COLUMN saga.steps.unknown IS 'it may have had its effect: no answer came';
COMMENT ON COLUMN saga.steps.task_id IS 'task of the last attempt of an external or remote step: see saga.tasks';
COMMENT ON COLUMN saga.steps.waiting_for IS 'of an external step that is running: the participant that has its task, or the queue in which it is offered; of a remote one the server, and why it has not been called yet';

CREATE VIEW saga.attempts WITH (security_barrier) AS
    SELECT a.saga_id, v.steps -> a.step::integer ->> 'name' AS step,
           a.operation, a.attempt, a.outcome, a.passing, a.sqlstate, a.message,
           a.detail, a.hint, a.context, a.started_at, a.finished_at,
           CASE WHEN v.steps -> a.step::integer ? 'foreach' THEN a.element END AS element,
           a.round::integer AS round
    FROM saga.saga s
    JOIN saga.attempt a ON a.saga_id = s.id AND a.slot = s.slot
    LEFT JOIN saga.definition_version v ON v.id = s.definition_id
    WHERE (pg_catalog.pg_has_role(s.role, 'USAGE')
           AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.attempts IS 'attempts that failed, each with its whole error';
COMMENT ON COLUMN saga.attempts.saga_id IS 'the saga';
COMMENT ON COLUMN saga.attempts.step IS 'name of the step';
COMMENT ON COLUMN saga.attempts.operation IS 'action, compensation or confirmation';
COMMENT ON COLUMN saga.attempts.attempt IS 'number of the attempt, from 1';
COMMENT ON COLUMN saga.attempts.outcome IS 'failed, timeout, or lost (its process ended)';
COMMENT ON COLUMN saga.attempts.passing IS 'the error was worth another attempt';
COMMENT ON COLUMN saga.attempts.sqlstate IS 'of the error, as are the next four';
COMMENT ON COLUMN saga.attempts.message IS 'primary message';
COMMENT ON COLUMN saga.attempts.detail IS 'detail, if there was one';
COMMENT ON COLUMN saga.attempts.hint IS 'hint, if there was one';
COMMENT ON COLUMN saga.attempts.context IS 'where it was raised; the last line names the attempt';
COMMENT ON COLUMN saga.attempts.started_at IS 'when the attempt began';
COMMENT ON COLUMN saga.attempts.finished_at IS 'when it ended';
COMMENT ON COLUMN saga.attempts.element IS 'of a foreach step: position in its array, from 0';
COMMENT ON COLUMN saga.attempts.round IS 'how often a savepoint before the step had turned the saga forward again';

-- A union at the top of a view would be taken apart, and its barrier lost.
CREATE VIEW saga.requests WITH (security_barrier) AS
    SELECT r.saga_id, r.id, r.verb, r.step, r.reason, r.requested_by,
           r.requested_at, r.applied_at, r.outcome, r.element
    FROM (
        SELECT h.saga_id, h.id, h.verb, h.step, h.reason, h.role_name AS requested_by,
               h.requested_at, h.applied_at, h.outcome, h.element
        FROM saga.saga s
        JOIN saga.history h ON h.saga_id = s.id AND h.slot = s.slot
        WHERE (pg_catalog.pg_has_role(s.role, 'USAGE')
               AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                    OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
           OR (SELECT saga.sees_all())
        UNION ALL
        SELECT m.saga_id, m.id, m.kind, m.step, m.reason, m.requested_by,
               m.created_at, NULL, 'pending', m.element
        FROM saga.message m
        JOIN saga.saga s ON s.id = m.saga_id
        WHERE m.kind IN ('cancel', 'pause', 'resume', 'retry', 'skip', 'abandon', 'migrate', 'signal')
          AND ((pg_catalog.pg_has_role(s.role, 'USAGE')
                AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                     OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
               OR (SELECT saga.sees_all()))) r;
COMMENT ON VIEW saga.requests IS
    'what people asked of sagas: who, when, why, and what became of it';
COMMENT ON COLUMN saga.requests.saga_id IS 'the saga';
COMMENT ON COLUMN saga.requests.id IS 'order in which they were made';
COMMENT ON COLUMN saga.requests.verb IS 'cancel, pause, resume, retry, skip, abandon, migrate or signal';
COMMENT ON COLUMN saga.requests.step IS 'step that was named, if any';
COMMENT ON COLUMN saga.requests.reason IS 'reason that was given';
COMMENT ON COLUMN saga.requests.requested_by IS 'role that asked';
COMMENT ON COLUMN saga.requests.requested_at IS 'when it was asked';
COMMENT ON COLUMN saga.requests.applied_at IS 'when it was acted upon; NULL = not yet';
COMMENT ON COLUMN saga.requests.outcome IS 'pending, done, or refused and why';
COMMENT ON COLUMN saga.requests.element IS 'element of the step that was named, if any';

CREATE VIEW saga.stuck WITH (security_barrier) AS
    SELECT s.id AS saga_id, v.name AS definition, v.version, s.key,
           s.role_name AS owner,
           v.steps -> COALESCE(t.step, s.step)::integer ->> 'name' AS step,
           COALESCE(t.operation, CASE WHEN s.backward THEN 'compensation' ELSE 'action' END::saga.operation) AS operation,
           t.attempts, s.error AS cause, t.error AS last_error,
           COALESCE(t.finished_at, s.created_at) AS since, s.created_at,
           CASE WHEN v.steps -> t.step::integer ? 'foreach' THEN t.element END AS element,
           t.operations
    FROM saga.saga s
    LEFT JOIN saga.definition_version v ON v.id = s.definition_id
    LEFT JOIN LATERAL (
        SELECT u.step, u.element, u.operation, u.attempts, u.error, u.finished_at,
               pg_catalog.count(*) OVER () AS operations
        FROM saga.step u
        WHERE u.saga_id = s.id AND u.slot = s.slot AND u.status = 'failed'
          -- in a saga that goes back a failed action is why, not what is stuck;
          -- and a step with a quorum may do without it
          AND (u.operation <> 'action'
               OR (NOT s.backward AND NOT u.surplus
                   AND (u.step = s.step OR NOT v.steps -> u.step::integer ? 'quorum')))
          AND u.round = CASE WHEN s.recoveries IS NULL THEN 0
              ELSE (SELECT saga.rounds_raw(s.definition_id, s.recoveries))[u.step + 1] END
        ORDER BY u.step <> s.step, CASE WHEN s.backward THEN -u.step ELSE u.step END, u.element
        LIMIT 1) t ON true
    WHERE s.due_at IS NOT NULL AND s.status = 'stuck'
      AND ((pg_catalog.pg_has_role(s.role, 'USAGE')
            AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                 OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
           OR (SELECT saga.sees_all()));
COMMENT ON VIEW saga.stuck IS
    'sagas that wait for a person''s saga.retry(), saga.skip() or saga.abandon(): one row each, with the first of their operations that are stuck';
COMMENT ON COLUMN saga.stuck.saga_id IS 'for saga.retry(), saga.skip() and saga.abandon()';
COMMENT ON COLUMN saga.stuck.definition IS 'name of the definition';
COMMENT ON COLUMN saga.stuck.version IS 'version of the definition';
COMMENT ON COLUMN saga.stuck.key IS 'business key';
COMMENT ON COLUMN saga.stuck.owner IS 'role that began it';
COMMENT ON COLUMN saga.stuck.step IS 'step whose operation is stuck';
COMMENT ON COLUMN saga.stuck.operation IS 'compensation, confirmation, or an action with no way back or whose process ended too often';
COMMENT ON COLUMN saga.stuck.attempts IS 'tries that it had';
COMMENT ON COLUMN saga.stuck.last_error IS 'of the last attempt';
COMMENT ON COLUMN saga.stuck.since IS 'when the last attempt ended';
COMMENT ON COLUMN saga.stuck.created_at IS 'when the saga was begun';
COMMENT ON COLUMN saga.stuck.cause IS 'why it went back or got stuck in the first place';
COMMENT ON COLUMN saga.stuck.element IS 'of a foreach step: position in its array, from 0';
COMMENT ON COLUMN saga.stuck.operations IS 'how many operations of it are stuck: saga.retry() retries them all, saga.skip() skips the first';

CREATE VIEW saga.locks WITH (security_barrier) AS
    SELECT CASE l.kind WHEN 'place' THEN v.name
                WHEN 'step' THEN v.name || '.' || l.name
                ELSE l.name END AS lock,
           CASE l.kind WHEN 'lock' THEN pg_catalog.pg_get_userbyid(
                    pg_catalog.split_part(l.lock_key, ' ', 2)::oid)::text
                ELSE d.owner_name END AS owner,
           l.kind, l.saga_id, v.name AS definition, s.key,
           CASE l.kind WHEN 'step' THEN l.name
                ELSE v.steps -> l.step::integer ->> 'name' END AS step,
           CASE WHEN l.granted THEN 'held' ELSE 'waiting' END AS status,
           w.position, l.since, l.expires_at,
           CASE l.kind WHEN 'step' THEN l.name
                ELSE v.steps -> l.until_step::integer ->> 'name' END AS until_step,
           CASE WHEN NOT l.granted THEN
               (SELECT pg_catalog.array_agg(DISTINCT h.root_id) FROM saga.lock h
                WHERE h.lock_key = l.lock_key AND h.granted) END AS held_by,
           CASE l.kind WHEN 'place' THEN d.max_running
                WHEN 'step' THEN l.places
                ELSE 1 END AS places
    FROM (SELECT k.*,
                 CASE WHEN k.lock_key LIKE 'definition %' THEN 'place'
                      WHEN k.lock_key LIKE 'step %' THEN 'step' ELSE 'lock' END AS kind,
                 pg_catalog.regexp_replace(k.lock_key, '^(lock|step) -?[0-9]+ ', '') AS name
          FROM saga.lock k) l
    JOIN saga.saga s ON s.id = l.saga_id
    LEFT JOIN saga.definition_version v ON v.id = s.definition_id
    LEFT JOIN saga.definition d ON d.name = v.name
    LEFT JOIN (SELECT k.position AS id, pg_catalog.row_number()
                   OVER (PARTITION BY k.lock_key ORDER BY k.position) AS position
               FROM saga.lock k WHERE NOT k.granted) w
        ON w.id = l.position AND NOT l.granted
    WHERE (pg_catalog.pg_has_role(s.role, 'USAGE')
           AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.locks IS
    'semantic locks and places that sagas hold or wait for, of roles that the current user is a member of';
COMMENT ON COLUMN saga.locks.lock IS 'its name, among those of one owner; of a place the definition, or that and the step';
COMMENT ON COLUMN saga.locks.owner IS 'owner of the definitions that share it';
COMMENT ON COLUMN saga.locks.kind IS 'lock; place: one of max_running; step: a place among the sagas that are in a step';
COMMENT ON COLUMN saga.locks.saga_id IS 'the saga that holds it or stands in line for it';
COMMENT ON COLUMN saga.locks.definition IS 'name of its definition';
COMMENT ON COLUMN saga.locks.key IS 'its business key';
COMMENT ON COLUMN saga.locks.step IS 'step that asked for it; NULL = the saga, before its start';
COMMENT ON COLUMN saga.locks.status IS 'held or waiting';
COMMENT ON COLUMN saga.locks.position IS 'waiting: place in line, 1 = the next';
COMMENT ON COLUMN saga.locks.since IS 'held: when it was granted; waiting: when it asked';
COMMENT ON COLUMN saga.locks.expires_at IS 'when it stops waiting; NULL = never';
COMMENT ON COLUMN saga.locks.until_step IS 'step with whose end it is given back; NULL = with the saga''s';
COMMENT ON COLUMN saga.locks.held_by IS 'waiting: the sagas, each at the top of its tree, that hold it';
COMMENT ON COLUMN saga.locks.places IS 'how many may hold it at once';

CREATE VIEW saga.queues WITH (security_barrier) AS
    SELECT q.name AS queue, q.owner_name AS owner, q.paused,
           i.ready, i.oldest_ready, i.claimed, i.oldest_claimed, i.next_lease_end,
           i.rate, i.offered, i.completed, i.failed, i.expired,
           i.failures_in_row, i.breaker, i.breaker_until, i.participants,
           q.breaker_failures, q.breaker_pause, q.breaker_max_pause
    FROM saga.queue q
    CROSS JOIN LATERAL saga.queues_raw(q.id) i
    WHERE (pg_catalog.pg_has_role(q.owner, 'USAGE')
           AND q.owner_name = pg_catalog.pg_get_userbyid(q.owner))
       OR EXISTS (SELECT FROM saga.queue_grant g
                  WHERE g.queue_id = q.id
                    AND pg_catalog.pg_has_role(g.role, 'USAGE')
                    AND g.role_name = pg_catalog.pg_get_userbyid(g.role))
       OR (SELECT saga.sees_health());
COMMENT ON VIEW saga.queues IS
    'queues that the current user owns, or may offer or take tasks of, and how they do; what is counted begins anew with the server';
COMMENT ON COLUMN saga.queues.queue IS 'its name; the channel is saga_<name>';
COMMENT ON COLUMN saga.queues.owner IS 'role that may change it';
COMMENT ON COLUMN saga.queues.paused IS 'by saga.configure_queue(): nobody gets its tasks';
COMMENT ON COLUMN saga.queues.ready IS 'tasks that nobody has claimed';
COMMENT ON COLUMN saga.queues.oldest_ready IS 'when the first of them was offered';
COMMENT ON COLUMN saga.queues.claimed IS 'tasks in work';
COMMENT ON COLUMN saga.queues.oldest_claimed IS 'when the first of them was claimed';
COMMENT ON COLUMN saga.queues.next_lease_end IS 'when the first of their leases ends';
COMMENT ON COLUMN saga.queues.rate IS 'tasks completed per second, in the last minute';
COMMENT ON COLUMN saga.queues.offered IS 'tasks that were offered since the server''s start, as the next three';
COMMENT ON COLUMN saga.queues.completed IS 'tasks that were answered as done';
COMMENT ON COLUMN saga.queues.failed IS 'tasks that were answered as failed';
COMMENT ON COLUMN saga.queues.expired IS 'tasks whose lease ended without an answer';
COMMENT ON COLUMN saga.queues.failures_in_row IS 'tasks that failed or expired since the last one was done';
COMMENT ON COLUMN saga.queues.breaker IS 'open: nobody gets its tasks, for their failures; half open: one is tried';
COMMENT ON COLUMN saga.queues.breaker_until IS 'when one is tried, while it is open';
COMMENT ON COLUMN saga.queues.participants IS 'that have looked for tasks in the last 5 minutes';
COMMENT ON COLUMN saga.queues.breaker_failures IS 'so many failures in a row open the breaker; 0 = never';
COMMENT ON COLUMN saga.queues.breaker_pause IS 'for so long at first';
COMMENT ON COLUMN saga.queues.breaker_max_pause IS 'for so long at most';

CREATE VIEW saga.servers WITH (security_barrier) AS
    SELECT r.server, r.role_name AS role, i.state, i.connections, i.in_flight,
           i.ready, i.oldest_ready, i.retry_at, i.calls, i.failed, i.lost,
           i.unreachable, i.latency_p50, i.latency_p99, i.breaker,
           i.breaker_until, r.once, r.saga_version, i.last_call, i.last_error,
           i.last_error_at, COALESCE(s.breaker_failures, 5) AS breaker_failures,
           COALESCE(s.breaker_pause, '1 s') AS breaker_pause,
           COALESCE(s.breaker_max_pause, '1 min') AS breaker_max_pause
    FROM saga.server_role r
    LEFT JOIN saga.server s ON s.name = r.server
    CROSS JOIN LATERAL saga.servers_raw(r.id) i
    WHERE (pg_catalog.pg_has_role(r.role, 'USAGE')
           AND r.role_name = pg_catalog.pg_get_userbyid(r.role))
       OR (SELECT saga.sees_health());
COMMENT ON VIEW saga.servers IS
    'foreign servers that steps of the roles whose privileges the current user has are done at, and how they do; what is counted begins anew with the server';
COMMENT ON COLUMN saga.servers.server IS 'the foreign server';
COMMENT ON COLUMN saga.servers.role IS 'whose sagas call it, with the user mapping of that role';
COMMENT ON COLUMN saga.servers.state IS 'idle, connecting, connected; pausing: it could not be reached; paused: by saga.configure_server()';
COMMENT ON COLUMN saga.servers.connections IS 'that are open';
COMMENT ON COLUMN saga.servers.in_flight IS 'calls that were sent and have no answer yet';
COMMENT ON COLUMN saga.servers.ready IS 'calls that wait to be sent';
COMMENT ON COLUMN saga.servers.oldest_ready IS 'since when the first of them waits';
COMMENT ON COLUMN saga.servers.retry_at IS 'pausing: when it is tried again';
COMMENT ON COLUMN saga.servers.calls IS 'that were answered since the server''s start, as the next three';
COMMENT ON COLUMN saga.servers.failed IS 'of them with an error';
COMMENT ON COLUMN saga.servers.lost IS 'calls whose answer was lost';
COMMENT ON COLUMN saga.servers.unreachable IS 'connections that could not be made';
COMMENT ON COLUMN saga.servers.latency_p50 IS 'from sending a call to its answer, lately: half of them took no longer';
COMMENT ON COLUMN saga.servers.latency_p99 IS 'likewise, 99 of 100';
COMMENT ON COLUMN saga.servers.breaker IS 'open: nothing is called, for the failures of the server; half open: one call is tried';
COMMENT ON COLUMN saga.servers.breaker_until IS 'when one is tried, while it is open';
COMMENT ON COLUMN saga.servers.once IS 'has each call its effect once, since the extension is there? else at least once; null: nobody has been there yet';
COMMENT ON COLUMN saga.servers.saga_version IS 'of the extension there';
COMMENT ON COLUMN saga.servers.last_call IS 'when one was answered last';
COMMENT ON COLUMN saga.servers.last_error IS 'why an answer was lost, or a connection could not be made';
COMMENT ON COLUMN saga.servers.last_error_at IS 'when that was';
COMMENT ON COLUMN saga.servers.breaker_failures IS 'so many failures in a row open the breaker; 0 = never';
COMMENT ON COLUMN saga.servers.breaker_pause IS 'for so long at first';
COMMENT ON COLUMN saga.servers.breaker_max_pause IS 'for so long at most';

CREATE VIEW saga.tasks WITH (security_barrier) AS
    SELECT t.id, q.name AS queue,
           CASE WHEN t.outcome IS NOT NULL THEN t.outcome
                WHEN t.claimed THEN 'claimed' ELSE 'ready' END AS status,
           t.saga_id, v.name AS definition, t.step,
           CASE WHEN e.step ? 'foreach' THEN t.element END AS element,
           t.operation, e.step -> t.operation::text ->> 'task' AS task,
           t.attempt, t.offered_at, t.claimed_at,
           CASE WHEN t.claimed AND t.outcome IS NULL THEN t.at END AS lease_until,
           t.expires_at, t.ended_at, t.participant, t.extensions, t.progress,
           t.cancelled AS cancel_requested, y.server
    FROM saga.task t
    LEFT JOIN saga.queue q ON q.id = t.queue_id
    LEFT JOIN saga.server_role y ON y.id = t.queue_id
    LEFT JOIN saga.definition_version v ON v.id = t.definition_id
    LEFT JOIN LATERAL (
        SELECT x.step FROM pg_catalog.jsonb_array_elements(v.steps) x(step)
        WHERE x.step ->> 'name' = t.step LIMIT 1) e ON true
    LEFT JOIN saga.saga s ON s.id = t.saga_id
    WHERE t.queue_id = ANY (ARRAY(
              SELECT p.id FROM saga.queue p
              WHERE (pg_catalog.pg_has_role(p.owner, 'USAGE')
                     AND p.owner_name = pg_catalog.pg_get_userbyid(p.owner))
                 OR EXISTS (SELECT FROM saga.queue_grant g
                            WHERE g.queue_id = p.id AND g.privilege = 'participate'
                              AND pg_catalog.pg_has_role(g.role, 'USAGE')
                              AND g.role_name = pg_catalog.pg_get_userbyid(g.role))))
       OR (pg_catalog.pg_has_role(s.role, 'USAGE')
           AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.tasks IS
    'tasks of the queues that the current user owns or may take tasks of, and of the sagas of roles that it is a member of, calls of other databases included; ended ones for some time: see saga.answer_retention';
COMMENT ON COLUMN saga.tasks.id IS 'in the order in which they were offered';
COMMENT ON COLUMN saga.tasks.queue IS 'where it is offered; NULL = that was dropped since, or it is a call of another database';
COMMENT ON COLUMN saga.tasks.status IS
    'ready: nobody has it; claimed: somebody has it, until lease_until; answered: as done or as failed; expired: its lease ended without an answer; withdrawn: nobody wanted it any more before it was claimed, or when it was given back';
COMMENT ON COLUMN saga.tasks.saga_id IS 'saga that offers it';
COMMENT ON COLUMN saga.tasks.definition IS 'name of its definition';
COMMENT ON COLUMN saga.tasks.step IS 'name of the step';
COMMENT ON COLUMN saga.tasks.element IS 'of a foreach step: position in its array, from 0';
COMMENT ON COLUMN saga.tasks.operation IS 'action, compensation or confirmation';
COMMENT ON COLUMN saga.tasks.task IS 'what the step calls the operation; of a remote step the function there';
COMMENT ON COLUMN saga.tasks.attempt IS 'number of the attempt: each has a task of its own';
COMMENT ON COLUMN saga.tasks.offered_at IS 'when it was offered';
COMMENT ON COLUMN saga.tasks.claimed_at IS 'when it was claimed';
COMMENT ON COLUMN saga.tasks.lease_until IS 'when its lease ends, unless it is extended';
COMMENT ON COLUMN saga.tasks.expires_at IS 'when the timeout of the attempt ends: no lease goes beyond it; NULL = no limit';
COMMENT ON COLUMN saga.tasks.ended_at IS 'when it was answered, expired or was withdrawn';
COMMENT ON COLUMN saga.tasks.participant IS 'who has claimed it, as it calls itself';
COMMENT ON COLUMN saga.tasks.extensions IS 'how often its lease was extended';
COMMENT ON COLUMN saga.tasks.progress IS 'what the participant said with the last saga.extend_lease()';
COMMENT ON COLUMN saga.tasks.cancel_requested IS 'nobody needs it any more, which the participant learns from saga.extend_lease()';
COMMENT ON COLUMN saga.tasks.server IS 'foreign server that is called; NULL = it is a task of a queue';

CREATE VIEW saga.participants WITH (security_barrier) AS
    SELECT q.name AS queue, p.participant, p.last_seen, p.claimed
    FROM saga.queue q
    CROSS JOIN LATERAL saga.participants_raw(q.id) p
    WHERE (pg_catalog.pg_has_role(q.owner, 'USAGE')
           AND q.owner_name = pg_catalog.pg_get_userbyid(q.owner))
       OR EXISTS (SELECT FROM saga.queue_grant g
                  WHERE g.queue_id = q.id
                    AND pg_catalog.pg_has_role(g.role, 'USAGE')
                    AND g.role_name = pg_catalog.pg_get_userbyid(g.role))
       OR (SELECT saga.sees_health());
COMMENT ON VIEW saga.participants IS
    'the participants of a queue that were seen last, at most 16, since the server''s start';
COMMENT ON COLUMN saga.participants.queue IS 'name of the queue';
COMMENT ON COLUMN saga.participants.participant IS 'as it calls itself in saga.claim_tasks()';
COMMENT ON COLUMN saga.participants.last_seen IS 'when it last looked for tasks';
COMMENT ON COLUMN saga.participants.claimed IS 'how many tasks it has claimed since it was first seen';

CREATE VIEW saga.barriers WITH (security_barrier) AS
    SELECT b.step, b.operation,
           CASE WHEN b.element >= 0 THEN b.element END AS element, b.round,
           b.role_name AS role, b.coordinator, b.begun_at, b.done_at, b.void
    FROM saga.barrier b
    WHERE EXISTS (SELECT FROM pg_catalog.pg_roles r
                  WHERE r.rolname = b.role_name AND pg_catalog.pg_has_role(r.oid, 'USAGE'))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.barriers IS
    'what sagas of other databases have had done here by roles that the current user is a member of: see saga.participate()';
COMMENT ON COLUMN saga.barriers.step IS 'of the saga, which is not known here by its number';
COMMENT ON COLUMN saga.barriers.operation IS 'that was done, unless it is void';
COMMENT ON COLUMN saga.barriers.element IS 'of a foreach step; else NULL';
COMMENT ON COLUMN saga.barriers.round IS 'how often the saga has gone forward again from a savepoint before the step';
COMMENT ON COLUMN saga.barriers.role IS 'that the other side connected as';
COMMENT ON COLUMN saga.barriers.coordinator IS 'identity of the database of the saga';
COMMENT ON COLUMN saga.barriers.begun_at IS 'when the saga began, by the clock of its server';
COMMENT ON COLUMN saga.barriers.done_at IS 'when it was done, by the clock of this server';
COMMENT ON COLUMN saga.barriers.void IS 'the compensation came first: the action was not done, and never will be';

CREATE VIEW saga.workers WITH (security_barrier) AS
    SELECT w.process, w.pid, d.datname AS database,
           COALESCE(r.rolname, w.role::text) AS role,
           w.state, w.reason, w.saga_id,
           (SELECT v.steps -> w.step ->> 'name'
            FROM saga.saga s
            JOIN saga.definition_version v ON v.id = s.definition_id
            WHERE s.id = w.saga_id
              AND d.datname = pg_catalog.current_database()) AS step,
           w.operation::saga.operation AS operation, w.attempt, w.since
    FROM saga.workers_raw() w
    LEFT JOIN pg_catalog.pg_database d ON d.oid = w.database
    LEFT JOIN pg_catalog.pg_roles r ON r.oid = w.role
    WHERE w.role IS NULL OR pg_catalog.pg_has_role(w.role, 'USAGE')
       OR (SELECT saga.sees_health());
COMMENT ON VIEW saga.workers IS
    'the processes of saga, and the roles and databases that have none, with the reason';
COMMENT ON COLUMN saga.workers.process IS 'launcher, coordinator, courier, worker, or foreground (CALL saga.run() or saga.recover())';
COMMENT ON COLUMN saga.workers.pid IS 'its process; NULL = there is none';
COMMENT ON COLUMN saga.workers.database IS 'where it works; NULL for the launcher';
COMMENT ON COLUMN saga.workers.role IS 'role as which a worker runs steps';
COMMENT ON COLUMN saga.workers.state IS 'what it does; absent: there should be one';
COMMENT ON COLUMN saga.workers.reason IS 'why there is none';
COMMENT ON COLUMN saga.workers.saga_id IS 'saga whose operation it runs just now, as are the next three';
COMMENT ON COLUMN saga.workers.step IS 'name of the step';
COMMENT ON COLUMN saga.workers.operation IS 'action, compensation or confirmation';
COMMENT ON COLUMN saga.workers.attempt IS 'number of the attempt';
COMMENT ON COLUMN saga.workers.since IS 'since when it is in this state';

------------------------------------------------------------------------------
-- Statistics: counted in shared memory, never by reading the tables
------------------------------------------------------------------------------

CREATE FUNCTION saga.health_raw(
    OUT definition text,
    OUT scheduled bigint, OUT running bigint, OUT compensating bigint,
    OUT held bigint, OUT stuck bigint, OUT paused bigint, OUT waiting jsonb,
    OUT begun bigint, OUT completed bigint, OUT compensated bigint, OUT abandoned bigint,
    OUT seconds double precision, OUT since timestamptz,
    OUT begun_1m double precision, OUT completed_1m double precision,
    OUT compensated_1m double precision, OUT abandoned_1m double precision,
    OUT compensation_ratio_1m double precision,
    OUT p50_1m interval, OUT p95_1m interval, OUT p99_1m interval,
    OUT begun_1h double precision, OUT completed_1h double precision,
    OUT compensated_1h double precision, OUT abandoned_1h double precision,
    OUT compensation_ratio_1h double precision,
    OUT p50_1h interval, OUT p95_1h interval, OUT p99_1h interval,
    OUT begun_1d double precision, OUT completed_1d double precision,
    OUT compensated_1d double precision, OUT abandoned_1d double precision,
    OUT compensation_ratio_1d double precision,
    OUT p50_1d interval, OUT p95_1d interval, OUT p99_1d interval)
RETURNS SETOF record
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_health';
COMMENT ON FUNCTION saga.health_raw() IS
    'what is behind view saga.health; of definitions of roles that the current user is a member of, and for monitors of all';

CREATE FUNCTION saga.step_health_raw(
    OUT definition text, OUT step text, OUT operation saga.operation,
    OUT succeeded bigint, OUT failed bigint, OUT seconds double precision, OUT since timestamptz,
    OUT succeeded_1m double precision, OUT failed_1m double precision,
    OUT p50_1m interval, OUT p95_1m interval, OUT p99_1m interval,
    OUT succeeded_1h double precision, OUT failed_1h double precision,
    OUT p50_1h interval, OUT p95_1h interval, OUT p99_1h interval,
    OUT succeeded_1d double precision, OUT failed_1d double precision,
    OUT p50_1d interval, OUT p95_1d interval, OUT p99_1d interval)
RETURNS SETOF record
LANGUAGE c STRICT VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_step_health';
COMMENT ON FUNCTION saga.step_health_raw() IS
    'what is behind view saga.step_health; of definitions of roles that the current user is a member of, and for monitors of all';

CREATE FUNCTION saga.reset_statistics(definition text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_reset_statistics';
COMMENT ON FUNCTION saga.reset_statistics(text) IS
    'forget how many sagas of a definition (NULL: of all) were begun and ended, and how long they and their steps took; how many there are now stays';

------------------------------------------------------------------------------
-- Health
--
-- These are asked every few seconds, so none of them counts sagas: numbers are
-- those of saga.health_raw(), times are read from the beginnings of indexes.
-- saga.alive, saga.ended and saga.messages have rows, without payloads.
------------------------------------------------------------------------------

CREATE FUNCTION saga.oldest_raw(
    OUT definition_id integer, OUT saga_id bigint, OUT created_at timestamptz)
RETURNS SETOF record
LANGUAGE c STABLE PARALLEL UNSAFE ROWS 20
AS 'MODULE_PATHNAME', 'saga_oldest_raw';
COMMENT ON FUNCTION saga.oldest_raw() IS
    'for view saga.health: of each version that has sagas that are not final the first one of each status; NULL = too many that have ended come before it';

CREATE FUNCTION saga.roles_raw(
    OUT role oid, OUT role_name text, OUT oldest_due_id bigint,
    OUT oldest_due_at timestamptz, OUT foreign_sagas boolean, OUT next_due_at timestamptz)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 10
AS 'MODULE_PATHNAME', 'saga_roles_raw';
COMMENT ON FUNCTION saga.roles_raw() IS
    'what is behind view saga.roles: the roles that have sagas that are not final, and the current user may see';

-- As the owner: who may not read all statistics would see nobody's snapshot.
CREATE FUNCTION saga.horizon_raw(
    OUT age integer, OUT holder text, OUT pid integer, OUT role text,
    OUT application text, OUT name text, OUT since timestamptz)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
BEGIN
    SELECT h.age, h.holder, h.pid, h.role, h.application, h.name, h.since
    INTO age, holder, pid, role, application, name, since
    FROM (
        SELECT greatest(age(a.backend_xmin), age(a.backend_xid)) AS age,
               CASE WHEN a.backend_type = 'walsender' THEN 'standby' ELSE 'session' END AS holder,
               a.pid, a.usename::text AS role, a.application_name AS application,
               NULL::text AS name, a.xact_start AS since
        FROM pg_stat_activity a
        WHERE (a.datname = current_database() OR a.backend_type = 'walsender')
          AND (a.backend_xmin IS NOT NULL OR a.backend_xid IS NOT NULL)
          AND a.pid <> pg_backend_pid() AND a.leader_pid IS NULL
          AND NOT EXISTS (SELECT FROM pg_stat_progress_vacuum v WHERE v.pid = a.pid)
        UNION ALL
        SELECT age(s.xmin), 'replication slot', s.active_pid, NULL, NULL, s.slot_name::text, NULL
        FROM pg_replication_slots s WHERE s.xmin IS NOT NULL
        UNION ALL
        SELECT age(p.transaction), 'prepared transaction', NULL, p.owner::text, NULL, p.gid, p.prepared
        FROM pg_prepared_xacts p WHERE p.database = current_database()) h
    ORDER BY h.age DESC, h.since, h.pid LIMIT 1;
END
$$;
COMMENT ON FUNCTION saga.horizon_raw() IS
    'for view saga.vitals: who holds the oldest snapshot that keeps vacuum from removing dead rows of this database';

CREATE VIEW saga.alive AS
    SELECT s.id AS saga_id, s.definition, s.version, s.key, s.status, s.owner,
           s.steps -> s.step::integer ->> 'name' AS step,
           CASE WHEN s.coordinator IS DISTINCT FROM
                     (SELECT c.id FROM saga.coordinator c
                      JOIN pg_catalog.pg_database d ON d.oid = c.database
                      WHERE d.datname = pg_catalog.current_database()) THEN 'saga.adopt()'
                ELSE s.waiting_for END AS waiting_for,
           CASE WHEN s.waiting_for IN ('next attempt', 'start time', 'timer')
                THEN s.due_at END AS next_attempt_at,
           s.created_at, s.started_at, s.deadline,
           COALESCE(s.deadline < pg_catalog.clock_timestamp(), false) AS overdue,
           s.backward AS compensates, s.suspect,
           s.error ->> 'message' AS cause, s.error ->> 'sqlstate' AS cause_sqlstate,
           NULLIF(s.parent_id, -1) AS parent_id, COALESCE(s.root_id, s.id) AS root_id
    FROM saga.sagas_raw s
    WHERE s.due_at IS NOT NULL;
COMMENT ON VIEW saga.alive IS
    'sagas that are not final, of roles that the current user is a member of: what it costs does not depend on how many have ended';
COMMENT ON COLUMN saga.alive.saga_id IS 'what saga.begin() returned';
COMMENT ON COLUMN saga.alive.definition IS 'name of the definition';
COMMENT ON COLUMN saga.alive.version IS 'version of the definition';
COMMENT ON COLUMN saga.alive.key IS 'business key, unique in the definition';
COMMENT ON COLUMN saga.alive.status IS 'scheduled, running, compensating, held, stuck or paused';
COMMENT ON COLUMN saga.alive.owner IS 'role that began it, as which its steps run';
COMMENT ON COLUMN saga.alive.step IS 'the step that is, or was last, attempted; of several one: see saga.steps';
COMMENT ON COLUMN saga.alive.waiting_for IS 'what it waits for; NULL if a worker is to go on with it';
COMMENT ON COLUMN saga.alive.next_attempt_at IS 'when it goes on, while it waits for a time';
COMMENT ON COLUMN saga.alive.created_at IS 'when it was begun';
COMMENT ON COLUMN saga.alive.started_at IS 'when its first attempt began';
COMMENT ON COLUMN saga.alive.deadline IS 'when it goes back unless its pivot has succeeded';
COMMENT ON COLUMN saga.alive.overdue IS 'its deadline has passed';
COMMENT ON COLUMN saga.alive.compensates IS 'it goes back';
COMMENT ON COLUMN saga.alive.suspect IS 'its last attempt timed out or ended its process: it runs alone';
COMMENT ON COLUMN saga.alive.cause IS 'message of what made it go back or get stuck, the first cause';
COMMENT ON COLUMN saga.alive.cause_sqlstate IS 'SQLSTATE of that';
COMMENT ON COLUMN saga.alive.parent_id IS 'saga of this database whose child it is; NULL = none';
COMMENT ON COLUMN saga.alive.root_id IS 'saga at the top of its tree; itself if it has no parent in this database';

CREATE VIEW saga.ended AS
    SELECT s.id AS saga_id, s.definition, s.version, s.key, s.status AS outcome, s.owner,
           s.error ->> 'step' AS cause_step, s.error ->> 'message' AS cause,
           s.error ->> 'sqlstate' AS cause_sqlstate,
           s.created_at, s.started_at, s.finished_at,
           s.finished_at - s.created_at AS duration, s.deadline,
           COALESCE(s.finished_at > s.deadline, false) AS overdue,
           NULLIF(s.parent_id, -1) AS parent_id, COALESCE(s.root_id, s.id) AS root_id
    FROM saga.sagas_raw s
    WHERE s.due_at IS NULL;
COMMENT ON VIEW saga.ended IS
    'sagas that are final, as long as they are kept, of roles that the current user is a member of';
COMMENT ON COLUMN saga.ended.saga_id IS 'what saga.begin() returned';
COMMENT ON COLUMN saga.ended.definition IS 'name of the definition';
COMMENT ON COLUMN saga.ended.version IS 'version of the definition';
COMMENT ON COLUMN saga.ended.key IS 'business key, unique in the definition';
COMMENT ON COLUMN saga.ended.outcome IS 'completed, compensated or abandoned';
COMMENT ON COLUMN saga.ended.owner IS 'role that began it';
COMMENT ON COLUMN saga.ended.cause_step IS 'of one that was not completed: step at which it turned back or got stuck first';
COMMENT ON COLUMN saga.ended.cause IS 'message of what made it, the first cause';
COMMENT ON COLUMN saga.ended.cause_sqlstate IS 'SQLSTATE of that';
COMMENT ON COLUMN saga.ended.created_at IS 'when it was begun';
COMMENT ON COLUMN saga.ended.started_at IS 'when its first attempt began';
COMMENT ON COLUMN saga.ended.finished_at IS 'when it became final';
COMMENT ON COLUMN saga.ended.duration IS 'from its begin to its end';
COMMENT ON COLUMN saga.ended.deadline IS 'when it was to be past its pivot';
COMMENT ON COLUMN saga.ended.overdue IS 'it became final after its deadline';
COMMENT ON COLUMN saga.ended.parent_id IS 'saga of this database whose child it was; NULL = none';
COMMENT ON COLUMN saga.ended.root_id IS 'saga at the top of its tree; itself if it had no parent in this database';

CREATE VIEW saga.messages WITH (security_barrier) AS
    SELECT m.id, m.saga_id, v.name AS definition, s.role_name AS owner, m.kind,
           m.step, m.element, m.reason, m.requested_by, m.created_at
    FROM saga.message m
    JOIN saga.saga s ON s.id = m.saga_id
    LEFT JOIN saga.definition_version v ON v.id = s.definition_id
    WHERE (pg_catalog.pg_has_role(s.role, 'USAGE')
           AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.messages IS
    'what sagas of roles that the current user is a member of were told and have not acted on yet: by people, and by the engine itself';
COMMENT ON COLUMN saga.messages.id IS 'order in which they were written';
COMMENT ON COLUMN saga.messages.saga_id IS 'saga that it is for';
COMMENT ON COLUMN saga.messages.definition IS 'name of its definition';
COMMENT ON COLUMN saga.messages.owner IS 'role that began it, whose worker acts on it';
COMMENT ON COLUMN saga.messages.kind IS
    'of people: cancel, pause, resume, retry, skip, abandon, migrate, signal; of the engine: outcome (of a branch or a task), child (how one ended), recall, release (to a child), place (a lock or a place was granted), deadlock';
COMMENT ON COLUMN saga.messages.step IS 'step that it is about, if any';
COMMENT ON COLUMN saga.messages.element IS 'element of that step, if any';
COMMENT ON COLUMN saga.messages.reason IS 'reason that was given, if any';
COMMENT ON COLUMN saga.messages.requested_by IS 'role that sent it';
COMMENT ON COLUMN saga.messages.created_at IS 'when it was written';

CREATE VIEW saga.roles WITH (security_barrier) AS
    SELECT COALESCE(r.role_name, a.rolname, w.role::text) AS role,
           COALESCE(a.rolname = COALESCE(r.role_name, a.rolname), false) AS "exists",
           COALESCE(a.rolcanlogin, false) AS can_log_in,
           COALESCE(pg_catalog.has_database_privilege(a.oid, d.oid, 'CONNECT'), false) AS may_connect,
           COALESCE(w.workers, 0) AS workers, w.reason AS no_worker, w.since AS no_worker_since,
           r.oldest_due_id, r.oldest_due_at, r.next_due_at,
           COALESCE(r.foreign_sagas, false) AS adopt
    FROM saga.roles_raw() r
    FULL JOIN (SELECT x.role, pg_catalog.count(x.pid)::integer AS workers,
                      pg_catalog.max(x.reason) AS reason,
                      pg_catalog.max(x.since) FILTER (WHERE x.state = 'absent') AS since
               FROM saga.workers_raw() x
               JOIN pg_catalog.pg_database y ON y.oid = x.database
               WHERE x.process = 'worker' AND y.datname = pg_catalog.current_database()
               GROUP BY x.role) w ON w.role = r.role
    LEFT JOIN pg_catalog.pg_roles a ON a.oid = COALESCE(r.role, w.role)
    LEFT JOIN pg_catalog.pg_database d ON d.datname = pg_catalog.current_database();
COMMENT ON VIEW saga.roles IS
    'roles that the current user is a member of, that have sagas that are not final, or workers: can there be any, and what waits for them';
COMMENT ON COLUMN saga.roles.role IS 'as it was called when it began the oldest of them';
COMMENT ON COLUMN saga.roles."exists" IS 'there is that role under that name: its sagas run only then';
COMMENT ON COLUMN saga.roles.can_log_in IS 'it has LOGIN, which workers need on PostgreSQL 15 and 16';
COMMENT ON COLUMN saga.roles.may_connect IS 'it has CONNECT on the database, which workers need';
COMMENT ON COLUMN saga.roles.workers IS 'that it has in this database';
COMMENT ON COLUMN saga.roles.no_worker IS 'why it has none though there is work';
COMMENT ON COLUMN saga.roles.no_worker_since IS 'since when there is work and no worker';
COMMENT ON COLUMN saga.roles.oldest_due_id IS 'of the sagas that could go on and wait for a worker, the one that has waited longest';
COMMENT ON COLUMN saga.roles.oldest_due_at IS 'since when that one waits';
COMMENT ON COLUMN saga.roles.next_due_at IS 'when the next one that waits for a time is to go on';
COMMENT ON COLUMN saga.roles.adopt IS 'it has sagas that were begun in another database: they wait for saga.adopt()';

CREATE VIEW saga.health WITH (security_barrier) AS
    SELECT COALESCE(d.name, h.definition) AS definition, d.owner_name AS owner, d.enabled,
           COALESCE(h.scheduled, k.n) AS scheduled,
           COALESCE(h.running, k.n) AS running,
           COALESCE(h.compensating, k.n) AS compensating,
           COALESCE(h.held, k.n) AS held,
           COALESCE(h.stuck, k.n) AS stuck,
           COALESCE(h.paused, k.n) AS paused,
           COALESCE(h.waiting, k.waiting) AS waiting,
           o.saga_id AS oldest_saga_id, o.created_at AS oldest_created_at,
           COALESCE(h.begun, k.n) AS begun,
           COALESCE(h.completed, k.n) AS completed,
           COALESCE(h.compensated, k.n) AS compensated,
           COALESCE(h.abandoned, k.n) AS abandoned,
           h.seconds, h.since,
           COALESCE(h.begun_1m, k.n) AS begun_1m, COALESCE(h.completed_1m, k.n) AS completed_1m,
           COALESCE(h.compensated_1m, k.n) AS compensated_1m, COALESCE(h.abandoned_1m, k.n) AS abandoned_1m,
           h.compensation_ratio_1m, h.p50_1m, h.p95_1m, h.p99_1m,
           COALESCE(h.begun_1h, k.n) AS begun_1h, COALESCE(h.completed_1h, k.n) AS completed_1h,
           COALESCE(h.compensated_1h, k.n) AS compensated_1h, COALESCE(h.abandoned_1h, k.n) AS abandoned_1h,
           h.compensation_ratio_1h, h.p50_1h, h.p95_1h, h.p99_1h,
           COALESCE(h.begun_1d, k.n) AS begun_1d, COALESCE(h.completed_1d, k.n) AS completed_1d,
           COALESCE(h.compensated_1d, k.n) AS compensated_1d, COALESCE(h.abandoned_1d, k.n) AS abandoned_1d,
           h.compensation_ratio_1d, h.p50_1d, h.p95_1d, h.p99_1d
    FROM saga.definition d
    FULL JOIN saga.health_raw() h ON h.definition = d.name
    LEFT JOIN (SELECT DISTINCT ON (v.name) v.name, r.saga_id, r.created_at
               FROM saga.oldest_raw() r
               JOIN saga.definition_version v ON v.id = r.definition_id
               ORDER BY v.name, r.saga_id NULLS FIRST) o ON o.name = COALESCE(d.name, h.definition)
    -- zero of a definition of which nothing was counted; null where nothing is
    CROSS JOIN (SELECT CASE WHEN l.reason IS NULL OR l.reason NOT LIKE '%shared_preload%' THEN 0 END AS n,
                       CASE WHEN l.reason IS NULL OR l.reason NOT LIKE '%shared_preload%' THEN '{}'::jsonb END AS waiting
                FROM saga.workers_raw() l WHERE l.process = 'launcher') k
    WHERE (pg_catalog.pg_has_role(d.owner, 'USAGE')
           AND d.owner_name = pg_catalog.pg_get_userbyid(d.owner))
       OR (SELECT saga.sees_health());
COMMENT ON VIEW saga.health IS
    'how the sagas of each definition that the current user owns do, as counted in shared memory: rates are per minute; null if saga is not preloaded';
COMMENT ON COLUMN saga.health.definition IS 'its name; NULL = sagas of definitions for which there was no memory, together';
COMMENT ON COLUMN saga.health.owner IS 'role that may change it; NULL = it was dropped, and has sagas that are not final';
COMMENT ON COLUMN saga.health.enabled IS 'may sagas of it be begun?';
COMMENT ON COLUMN saga.health.scheduled IS 'sagas of it that are to start later; as the next ones, right now';
COMMENT ON COLUMN saga.health.running IS 'that go forward, whether they wait for something or not';
COMMENT ON COLUMN saga.health.compensating IS 'that go back';
COMMENT ON COLUMN saga.health.held IS 'that are done and wait for their parents';
COMMENT ON COLUMN saga.health.stuck IS 'that wait for a person: see saga.stuck';
COMMENT ON COLUMN saga.health.paused IS 'that wait for saga.resume()';
COMMENT ON COLUMN saga.health.waiting IS 'of all of them how many wait for what: "worker" is to go on at once';
COMMENT ON COLUMN saga.health.oldest_saga_id IS 'of those that are not final the one that was begun first; NULL if that is another role''s, which the current user does not see, or if more rows that vacuum cannot remove come before it than are looked at';
COMMENT ON COLUMN saga.health.oldest_created_at IS 'when that was begun';
COMMENT ON COLUMN saga.health.begun IS 'sagas that were begun since "since", as the next three';
COMMENT ON COLUMN saga.health.completed IS 'that were completed';
COMMENT ON COLUMN saga.health.compensated IS 'that were compensated';
COMMENT ON COLUMN saga.health.abandoned IS 'that were abandoned';
COMMENT ON COLUMN saga.health.seconds IS 'how long those that have ended took, together, from their begins to their ends';
COMMENT ON COLUMN saga.health.since IS 'since when it is counted: see saga.reset_statistics()';
COMMENT ON COLUMN saga.health.begun_1m IS 'sagas per minute that were begun, in the last minute';
COMMENT ON COLUMN saga.health.completed_1m IS 'likewise completed';
COMMENT ON COLUMN saga.health.compensated_1m IS 'likewise compensated';
COMMENT ON COLUMN saga.health.abandoned_1m IS 'likewise abandoned';
COMMENT ON COLUMN saga.health.compensation_ratio_1m IS 'part of those that ended in the last minute that were compensated; NULL if none ended';
COMMENT ON COLUMN saga.health.p50_1m IS 'how long those took that ended in the last minute: half of them no longer than this';
COMMENT ON COLUMN saga.health.p95_1m IS 'likewise 95 of 100';
COMMENT ON COLUMN saga.health.p99_1m IS 'likewise 99 of 100';
COMMENT ON COLUMN saga.health.begun_1h IS 'sagas per minute that were begun, in the last hour';
COMMENT ON COLUMN saga.health.completed_1h IS 'likewise completed';
COMMENT ON COLUMN saga.health.compensated_1h IS 'likewise compensated';
COMMENT ON COLUMN saga.health.abandoned_1h IS 'likewise abandoned';
COMMENT ON COLUMN saga.health.compensation_ratio_1h IS 'part of those that ended in the last hour that were compensated; NULL if none ended';
COMMENT ON COLUMN saga.health.p50_1h IS 'how long those took that ended in the last hour: half of them no longer than this';
COMMENT ON COLUMN saga.health.p95_1h IS 'likewise 95 of 100';
COMMENT ON COLUMN saga.health.p99_1h IS 'likewise 99 of 100';
COMMENT ON COLUMN saga.health.begun_1d IS 'sagas per minute that were begun, in the last day';
COMMENT ON COLUMN saga.health.completed_1d IS 'likewise completed';
COMMENT ON COLUMN saga.health.compensated_1d IS 'likewise compensated';
COMMENT ON COLUMN saga.health.abandoned_1d IS 'likewise abandoned';
COMMENT ON COLUMN saga.health.compensation_ratio_1d IS 'part of those that ended in the last day that were compensated; NULL if none ended';
COMMENT ON COLUMN saga.health.p50_1d IS 'how long those took that ended in the last day: half of them no longer than this';
COMMENT ON COLUMN saga.health.p95_1d IS 'likewise 95 of 100';
COMMENT ON COLUMN saga.health.p99_1d IS 'likewise 99 of 100';

CREATE VIEW saga.step_health WITH (security_barrier) AS
    SELECT h.definition, h.step, h.operation, h.succeeded, h.failed, h.seconds, h.since,
           h.succeeded_1m, h.failed_1m, h.p50_1m, h.p95_1m, h.p99_1m,
           h.succeeded_1h, h.failed_1h, h.p50_1h, h.p95_1h, h.p99_1h,
           h.succeeded_1d, h.failed_1d, h.p50_1d, h.p95_1d, h.p99_1d
    FROM saga.step_health_raw() h
    LEFT JOIN saga.definition d ON d.name = h.definition
    WHERE (pg_catalog.pg_has_role(d.owner, 'USAGE')
           AND d.owner_name = pg_catalog.pg_get_userbyid(d.owner))
       OR (SELECT saga.sees_health());
COMMENT ON VIEW saga.step_health IS
    'how the operations of the steps of each definition that the current user owns do, as counted in shared memory: rates are per minute';
COMMENT ON COLUMN saga.step_health.definition IS 'name of the definition';
COMMENT ON COLUMN saga.step_health.step IS 'name of the step';
COMMENT ON COLUMN saga.step_health.operation IS 'action, compensation or confirmation';
COMMENT ON COLUMN saga.step_health.succeeded IS 'attempts that succeeded since "since"';
COMMENT ON COLUMN saga.step_health.failed IS 'attempts that failed, timed out or were lost, likewise';
COMMENT ON COLUMN saga.step_health.seconds IS 'how long all of them took, together';
COMMENT ON COLUMN saga.step_health.since IS 'since when it is counted: see saga.reset_statistics()';
COMMENT ON COLUMN saga.step_health.succeeded_1m IS 'attempts per minute that succeeded, in the last minute';
COMMENT ON COLUMN saga.step_health.failed_1m IS 'likewise failed';
COMMENT ON COLUMN saga.step_health.p50_1m IS 'how long attempts took in the last minute: half of them no longer than this';
COMMENT ON COLUMN saga.step_health.p95_1m IS 'likewise 95 of 100';
COMMENT ON COLUMN saga.step_health.p99_1m IS 'likewise 99 of 100';
COMMENT ON COLUMN saga.step_health.succeeded_1h IS 'attempts per minute that succeeded, in the last hour';
COMMENT ON COLUMN saga.step_health.failed_1h IS 'likewise failed';
COMMENT ON COLUMN saga.step_health.p50_1h IS 'how long attempts took in the last hour: half of them no longer than this';
COMMENT ON COLUMN saga.step_health.p95_1h IS 'likewise 95 of 100';
COMMENT ON COLUMN saga.step_health.p99_1h IS 'likewise 99 of 100';
COMMENT ON COLUMN saga.step_health.succeeded_1d IS 'attempts per minute that succeeded, in the last day';
COMMENT ON COLUMN saga.step_health.failed_1d IS 'likewise failed';
COMMENT ON COLUMN saga.step_health.p50_1d IS 'how long attempts took in the last day: half of them no longer than this';
COMMENT ON COLUMN saga.step_health.p95_1d IS 'likewise 95 of 100';
COMMENT ON COLUMN saga.step_health.p99_1d IS 'likewise 99 of 100';

CREATE VIEW saga.vitals WITH (security_barrier) AS
    SELECT pg_catalog.clock_timestamp() AS at,
           pg_catalog.current_setting('saga.enabled', true)::boolean AS enabled,
           w.launcher, w.workers, w.workers_wanted, w.no_worker,
           o.oldest_due_id, o.role AS oldest_due_role, o.oldest_due_at,
           t.dead_tuples, t.worst_table, t.worst_table_dead, t.worst_table_ratio,
           t.worst_table_vacuumed,
           COALESCE(z.age, 0) AS horizon_age, z.since AS horizon_since,
           z.holder AS horizon_holder, z.pid AS horizon_pid, z.role AS horizon_role,
           z.application AS horizon_application, z.name AS horizon_name,
           c.slot, k.created_at AS oldest_kept
    FROM saga.coordinator c
    CROSS JOIN (
        SELECT COALESCE(pg_catalog.bool_or(x.process = 'launcher' AND x.pid IS NOT NULL), false) AS launcher,
               pg_catalog.count(x.pid) FILTER (WHERE x.process = 'worker' AND y.oid IS NOT NULL)::integer AS workers,
               pg_catalog.count(*) FILTER (WHERE x.state = 'absent' AND y.oid IS NOT NULL)::integer AS workers_wanted,
               pg_catalog.max(x.reason) FILTER (WHERE x.process = 'launcher' OR y.oid IS NOT NULL) AS no_worker
        FROM saga.workers_raw() x
        LEFT JOIN pg_catalog.pg_database y
            ON y.oid = x.database AND y.datname = pg_catalog.current_database()) w
    LEFT JOIN LATERAL (
        SELECT r.oldest_due_id, r.role_name AS role, r.oldest_due_at FROM saga.roles_raw() r
        WHERE r.oldest_due_at IS NOT NULL ORDER BY r.oldest_due_at LIMIT 1) o ON true
    LEFT JOIN LATERAL (
        SELECT pg_catalog.sum(n.dead) OVER ()::bigint AS dead_tuples,
               CASE WHEN n.dead > 0 THEN n.relname::text END AS worst_table,
               NULLIF(n.dead, 0) AS worst_table_dead,
               NULLIF(n.dead, 0) / (n.dead + n.live)::double precision AS worst_table_ratio,
               CASE WHEN n.dead > 0 THEN
                   GREATEST(pg_catalog.pg_stat_get_last_autovacuum_time(n.oid),
                            pg_catalog.pg_stat_get_last_vacuum_time(n.oid)) END AS worst_table_vacuumed
        FROM (SELECT q.oid, q.relname, pg_catalog.pg_stat_get_dead_tuples(q.oid) AS dead,
                     pg_catalog.pg_stat_get_live_tuples(q.oid) AS live
              FROM pg_catalog.pg_class q
              WHERE q.relnamespace = 'saga'::pg_catalog.regnamespace AND q.relkind = 'r') n
        -- not one that is small and mostly dead
        ORDER BY n.dead / (n.live + 10000.0) DESC LIMIT 1) t ON true
    CROSS JOIN saga.horizon_raw() z
    LEFT JOIN LATERAL (
        SELECT s.created_at FROM saga.saga s ORDER BY s.id LIMIT 1) k ON true
    WHERE (SELECT saga.sees_health());
COMMENT ON VIEW saga.vitals IS
    'what precedes incidents, in one row: work that nobody looks at, processes that are missing, dead rows, and the oldest snapshot that keeps vacuum from removing them';
COMMENT ON COLUMN saga.vitals.at IS 'when it was read';
COMMENT ON COLUMN saga.vitals.enabled IS 'saga.enabled: background processes may run';
COMMENT ON COLUMN saga.vitals.launcher IS 'the launcher runs';
COMMENT ON COLUMN saga.vitals.workers IS 'that run in this database';
COMMENT ON COLUMN saga.vitals.workers_wanted IS 'processes of this database that there should be and are not: see saga.workers';
COMMENT ON COLUMN saga.vitals.no_worker IS 'why: one of the reasons';
COMMENT ON COLUMN saga.vitals.oldest_due_id IS 'of the sagas that could go on and wait for a worker, the one that has waited longest';
COMMENT ON COLUMN saga.vitals.oldest_due_role IS 'whose that one is: see saga.roles';
COMMENT ON COLUMN saga.vitals.oldest_due_at IS 'since when it waits';
COMMENT ON COLUMN saga.vitals.dead_tuples IS 'rows of saga''s tables that vacuum is to remove, as PostgreSQL counts them';
COMMENT ON COLUMN saga.vitals.worst_table IS 'the table that has most of them for its size';
COMMENT ON COLUMN saga.vitals.worst_table_dead IS 'how many that has';
COMMENT ON COLUMN saga.vitals.worst_table_ratio IS 'what part of its rows they are';
COMMENT ON COLUMN saga.vitals.worst_table_vacuumed IS 'when it was vacuumed last, by autovacuum or by hand';
COMMENT ON COLUMN saga.vitals.horizon_age IS 'how many transactions have begun since the oldest snapshot that is still in use, this session''s not counted: dead rows that are younger stay; 0 = there is none';
COMMENT ON COLUMN saga.vitals.horizon_since IS 'since when it is; NULL of a replication slot';
COMMENT ON COLUMN saga.vitals.horizon_holder IS 'whose it is: session, standby, replication slot or prepared transaction';
COMMENT ON COLUMN saga.vitals.horizon_pid IS 'process of a session or standby, of a slot that is in use';
COMMENT ON COLUMN saga.vitals.horizon_role IS 'role of a session or prepared transaction';
COMMENT ON COLUMN saga.vitals.horizon_application IS 'application_name of a session or standby';
COMMENT ON COLUMN saga.vitals.horizon_name IS 'name of a slot or prepared transaction';
COMMENT ON COLUMN saga.vitals.slot IS 'where new sagas are stored: see saga.storage';
COMMENT ON COLUMN saga.vitals.oldest_kept IS 'when the oldest saga that is still stored was begun';

------------------------------------------------------------------------------
-- Traces
--
-- A saga is a span, and so is each operation of it; their ids are computed, see
-- src/trace.c.  What is looked for by saga_id or saga_end_time reads the rows of
-- these sagas only.
------------------------------------------------------------------------------

CREATE FUNCTION saga.trace_raw(token uuid, traceparent text,
    OUT trace_id text, OUT span_id text, OUT parent_span_id text, OUT sampled boolean)
RETURNS record
LANGUAGE c IMMUTABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_trace_raw';
COMMENT ON FUNCTION saga.trace_raw(uuid, text) IS
    'for view saga.spans: the trace and the span of a saga, made of its token and what saga.begin() was given';

CREATE FUNCTION saga.span_raw(token uuid, step text, operation text, element integer,
    round integer) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_span_raw';
COMMENT ON FUNCTION saga.span_raw(uuid, text, text, integer, integer) IS
    'for view saga.spans: the span of an operation, made of the token of its saga';

CREATE VIEW saga.spans WITH (security_barrier) AS
    SELECT r.trace_id, o.span_id, o.parent_span_id, o.name, o.kind,
           o.start_time, e.end_time,
           (EXTRACT(epoch FROM o.start_time) * 1000000)::bigint * 1000 AS start_time_unix_nano,
           (EXTRACT(epoch FROM e.end_time) * 1000000)::bigint * 1000 AS end_time_unix_nano,
           o.status_code, o.status_message, o.attributes, o.events,
           e.end_time IS NOT NULL AS ended, r.sampled,
           s.id AS saga_id, s.finished_at AS saga_end_time
    FROM saga.saga s
    LEFT JOIN saga.definition_version v ON v.id = s.definition_id
    CROSS JOIN LATERAL saga.trace_raw(s.token, s.traceparent) r
    CROSS JOIN LATERAL (
        SELECT r.span_id, r.parent_span_id, COALESCE(v.name, 'saga') AS name,
               'internal' AS kind, s.created_at AS start_time, s.finished_at AS end_time,
               CASE WHEN s.status IN ('completed', 'held') THEN 'ok'
                    WHEN s.backward OR s.status IN ('stuck', 'abandoned') THEN 'error'
                    ELSE 'unset' END AS status_code,
               CASE WHEN s.backward OR s.status IN ('stuck', 'abandoned')
                    THEN s.error ->> 'message' END AS status_message,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                   'saga.id', s.id,
                   'saga.definition', v.name,
                   'saga.definition.version', v.version,
                   'saga.key', s.key,
                   'saga.status', s.status,
                   'saga.role', s.role_name,
                   'saga.parent.id', NULLIF(s.parent_id, -1),
                   'db.system.name', 'postgresql',
                   'db.namespace', pg_catalog.current_database(),
                   'error.type', CASE WHEN s.backward OR s.status IN ('stuck', 'abandoned')
                                      THEN s.error ->> 'sqlstate' END)) AS attributes,
               COALESCE((
                   SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                       'name', 'saga.request',
                       'time', h.applied_at,
                       'time_unix_nano', (EXTRACT(epoch FROM h.applied_at) * 1000000)::bigint * 1000,
                       'attributes', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                           'saga.request.verb', h.verb,
                           'saga.request.role', h.role_name,
                           'saga.request.reason', h.reason,
                           'saga.request.outcome', h.outcome,
                           'saga.step', h.step))) ORDER BY h.id)
                   FROM saga.history h
                   WHERE h.saga_id = s.id AND h.slot = s.slot), '[]') AS events
        UNION ALL
        SELECT saga.span_raw(s.token, COALESCE(x.step ->> 'name', ''), t.operation::text,
                             t.element, t.round),
               r.span_id,
               pg_catalog.concat_ws(' ', t.operation, x.step ->> 'name'),
               CASE WHEN x.step ->> 'kind' = 'external' THEN 'producer'
                    WHEN x.step ? 'server' THEN 'client'
                    ELSE 'internal' END,
               t.started_at,
               -- what has failed may be attempted again while its saga is stuck
               CASE WHEN t.status IN ('succeeded', 'skipped')
                      OR (t.status = 'failed' AND s.status NOT IN ('stuck', 'paused'))
                    THEN COALESCE(t.finished_at, s.finished_at)
                    ELSE s.finished_at END,
               CASE t.status WHEN 'succeeded' THEN 'ok' WHEN 'failed' THEN 'error' ELSE 'unset' END,
               CASE WHEN t.status = 'failed' THEN t.error ->> 'message' END,
               pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                   'saga.id', s.id,
                   'saga.definition', v.name,
                   'saga.key', s.key,
                   'saga.step', x.step ->> 'name',
                   'saga.step.kind', x.step ->> 'kind',
                   'saga.operation', t.operation,
                   'saga.operation.status', t.status,
                   'saga.attempts', t.attempts,
                   'saga.element', CASE WHEN x.step ? 'foreach' THEN t.element END,
                   'saga.round', NULLIF(t.round, 0),
                   'saga.child.id', t.child_id,
                   'error.type', CASE WHEN t.status = 'failed' THEN t.error ->> 'sqlstate' END)
                   || CASE
                       WHEN x.step ->> 'kind' = 'external' THEN pg_catalog.jsonb_build_object(
                           'messaging.system', 'saga',
                           'messaging.operation.type', 'send',
                           'messaging.operation.name', x.step #>> ARRAY[t.operation::text, 'task'],
                           'messaging.destination.name', x.step ->> 'queue',
                           'messaging.message.id', t.task_id::text)
                       WHEN x.step ? 'server' THEN pg_catalog.jsonb_build_object(
                           'rpc.system', 'postgresql',
                           'rpc.service', x.step ->> 'server',
                           'rpc.method', COALESCE(x.step #>> ARRAY[t.operation::text, 'task'],
                                                  x.step ->> 'definition'))
                       WHEN x.step #>> ARRAY[t.operation::text, 'function'] IS NOT NULL THEN
                           pg_catalog.jsonb_build_object(
                               'db.system.name', 'postgresql',
                               'db.namespace', pg_catalog.current_database(),
                               'db.stored_procedure.name',
                                   pg_catalog.split_part(
                                       x.step #>> ARRAY[t.operation::text, 'function'], '(', 1),
                               'db.response.status_code',
                                   CASE WHEN t.status = 'failed' THEN t.error ->> 'sqlstate' END)
                       ELSE '{}' END),
               CASE WHEN t.error IS NULL THEN '[]' ELSE COALESCE((
                   SELECT pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object(
                       'name', 'exception',
                       'time', a.finished_at,
                       'time_unix_nano', (EXTRACT(epoch FROM a.finished_at) * 1000000)::bigint * 1000,
                       'attributes', pg_catalog.jsonb_strip_nulls(pg_catalog.jsonb_build_object(
                           'exception.type', a.sqlstate,
                           'exception.message', a.message,
                           'exception.stacktrace', NULLIF(pg_catalog.concat_ws(E'\n',
                               'DETAIL:  ' || a.detail, 'HINT:  ' || a.hint,
                               'CONTEXT:  ' || a.context), ''),
                           'saga.attempt', a.attempt,
                           'saga.attempt.outcome', a.outcome))) ORDER BY a.attempt)
                   FROM saga.attempt a
                   WHERE a.saga_id = t.saga_id AND a.slot = t.slot AND a.step = t.step
                     AND a.operation = t.operation AND a.element = t.element
                     AND a.round = t.round), '[]') END
        FROM saga.step t
        CROSS JOIN LATERAL (SELECT v.steps -> t.step::integer AS step OFFSET 0) x
        WHERE t.saga_id = s.id AND t.slot = s.slot AND t.started_at IS NOT NULL) o
    -- the clock may have been set back between the two
    CROSS JOIN LATERAL (
        SELECT CASE WHEN o.end_time < o.start_time THEN o.start_time ELSE o.end_time END
            AS end_time) e
    WHERE (pg_catalog.pg_has_role(s.role, 'USAGE')
           AND (s.role_name = pg_catalog.pg_get_userbyid(s.role)
                OR s.coordinator = (SELECT c.id FROM saga.coordinator c)))
       OR (SELECT saga.sees_all());
COMMENT ON VIEW saga.spans IS
    'sagas and their operations as spans of a trace, in the words of OpenTelemetry; of roles that the current user is a member of';
COMMENT ON COLUMN saga.spans.trace_id IS 'of the traceparent that saga.begin() was given, else one of its own';
COMMENT ON COLUMN saga.spans.span_id IS 'of the saga, or of the operation: the same for all attempts';
COMMENT ON COLUMN saga.spans.parent_span_id IS
    'of an operation its saga; of a child saga the operation that began it; of another saga what its traceparent said, NULL = nothing';
COMMENT ON COLUMN saga.spans.name IS 'name of the definition; of an operation "<operation> <step>"';
COMMENT ON COLUMN saga.spans.kind IS 'internal; producer for a task of a queue, client for what is done at a server';
COMMENT ON COLUMN saga.spans.start_time IS 'when the saga was begun, or the first attempt began';
COMMENT ON COLUMN saga.spans.end_time IS 'when it ended; NULL = it has not';
COMMENT ON COLUMN saga.spans.start_time_unix_nano IS 'the same in nanoseconds since 1970, as is the next';
COMMENT ON COLUMN saga.spans.end_time_unix_nano IS 'likewise';
COMMENT ON COLUMN saga.spans.status_code IS 'ok; error: it has failed, was or is to be undone, or is stuck; unset';
COMMENT ON COLUMN saga.spans.status_message IS 'of an error: the first cause, or that of the last attempt';
COMMENT ON COLUMN saga.spans.attributes IS 'saga.*, and what OpenTelemetry has names for: db.*, messaging.*, rpc.*, error.type';
COMMENT ON COLUMN saga.spans.events IS
    'of an operation each attempt that failed, as an event "exception"; of a saga each request of a person, as "saga.request"';
COMMENT ON COLUMN saga.spans.ended IS 'it has ended, and does not change any more';
COMMENT ON COLUMN saga.spans.sampled IS 'false: whoever began the trace does not record it';
COMMENT ON COLUMN saga.spans.saga_id IS 'the saga';
COMMENT ON COLUMN saga.spans.saga_end_time IS 'when that became final; NULL = it has not';

------------------------------------------------------------------------------
-- Retention
--
-- Sagas that ended longer ago than their definition's retention are removed: by
-- the coordinator, and by CALL saga.retain().
------------------------------------------------------------------------------

CREATE PROCEDURE saga.retain(
    time_budget interval DEFAULT '1 min',
    INOUT removed bigint DEFAULT NULL,
    INOUT moved bigint DEFAULT NULL,
    INOUT waits_for text DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_retain';
COMMENT ON PROCEDURE saga.retain(interval, bigint, bigint, text) IS
    'remove the sagas of this database that ended longer ago than their definition''s retention, for at most so long; returns how many, how many others had to be moved for that, and what keeps it from doing more. The coordinator does the same by itself unless saga.retention_interval is 0';

CREATE FUNCTION saga.export(until timestamptz DEFAULT now(), since timestamptz DEFAULT '-infinity')
RETURNS SETOF jsonb LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 1000
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    SELECT jsonb_build_object(
        'saga', to_jsonb(s),
        'steps', COALESCE((
            SELECT jsonb_agg(to_jsonb(t) ORDER BY t.position, t.operation, t.round, t.element)
            FROM saga.steps t WHERE t.saga_id = s.saga_id), '[]'),
        'attempts', COALESCE((
            SELECT jsonb_agg(to_jsonb(a) ORDER BY a.started_at, a.attempt)
            FROM saga.attempts a WHERE a.saga_id = s.saga_id), '[]'),
        'requests', COALESCE((
            SELECT jsonb_agg(to_jsonb(r) ORDER BY r.requested_at, r.id)
            FROM saga.requests r WHERE r.saga_id = s.saga_id), '[]'))
    FROM saga.sagas s WHERE s.finished_at < $1 AND s.finished_at >= $2
$$;
COMMENT ON FUNCTION saga.export(timestamptz, timestamptz) IS
    'the sagas that ended before "until", and not before "since", whole: one object each, with what the views saga.sagas, steps, attempts and requests have of it, of those that the current user sees; in no order';

CREATE VIEW saga.storage WITH (security_barrier) AS
    SELECT l.slot,
           CASE WHEN l.slot = c.slot THEN 'current'
                WHEN z.blocks = 0 THEN 'empty'
                WHEN l.slot >= 6 AND l.closed_at IS NULL THEN 'survivors'
                ELSE 'closed' END AS state,
           CASE WHEN z.blocks = 0 THEN 0 ELSE l.sagas END AS sagas,
           CASE WHEN z.blocks = 0 THEN 0 ELSE l.expired END AS expired,
           l.looked_at, z.bytes, l.opened_at, l.closed_at, l.emptied_at, l.waits_for
    FROM saga.slot l
    CROSS JOIN saga.coordinator c
    CROSS JOIN LATERAL (
        SELECT pg_catalog.sum(pg_catalog.pg_total_relation_size(k.oid))::bigint AS bytes,
               pg_catalog.sum(pg_catalog.pg_relation_size(k.oid))
                   FILTER (WHERE k.relname = 'saga_' || l.slot) AS blocks
        FROM pg_catalog.pg_class k
        WHERE k.relnamespace = (SELECT n.oid FROM pg_catalog.pg_namespace n WHERE n.nspname = 'saga')
          AND k.relname IN ('saga_' || l.slot, 'step_' || l.slot,
                            'attempt_' || l.slot, 'history_' || l.slot)) z
    WHERE (SELECT saga.sees_health());
COMMENT ON VIEW saga.storage IS
    'the eight slots that sagas are kept in, and what becomes of them';
COMMENT ON COLUMN saga.storage.slot IS '0 to 5: a ring for new sagas; 6 and 7: for those that were in a slot that was emptied and are to be kept';
COMMENT ON COLUMN saga.storage.state IS
    'current: new sagas go there; closed: it is emptied once most of it has expired; survivors: those that are to be kept go there; empty';
COMMENT ON COLUMN saga.storage.sagas IS 'how many there were, estimated at looked_at';
COMMENT ON COLUMN saga.storage.expired IS 'how many of them had ended longer ago than their retention';
COMMENT ON COLUMN saga.storage.looked_at IS 'when these two were estimated; NULL = never';
COMMENT ON COLUMN saga.storage.bytes IS 'size on disk of all tables of the slot, with their indexes';
COMMENT ON COLUMN saga.storage.opened_at IS 'when it became current, or survivors first came; NULL = not known';
COMMENT ON COLUMN saga.storage.closed_at IS 'when another one took its place';
COMMENT ON COLUMN saga.storage.emptied_at IS 'when it was emptied last';
COMMENT ON COLUMN saga.storage.waits_for IS 'what keeps it from being emptied; NULL = nothing that was noticed';

------------------------------------------------------------------------------
-- Invariants: what must hold between tables, checked from time to time
--
-- A query that finds the rows that are wrong, run by a process of its own, in a
-- session of its owner: so it can be no more than that role is, and nobody
-- else's session is touched.
------------------------------------------------------------------------------

CREATE FUNCTION saga.add_invariant(
    name text,
    query text,
    definition text DEFAULT NULL,
    pause boolean DEFAULT false,
    timeout interval DEFAULT '1 min',
    max_rows integer DEFAULT 1000,
    every interval DEFAULT NULL,
    key text[] DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_add_invariant';
COMMENT ON FUNCTION saga.add_invariant(text, text, text, boolean, interval, integer, interval, text[]) IS
    'keep a query that finds what must not be: each row is a violation. CALL saga.check_invariants() runs it as the current user, in a session of its own that reads only, with the present search_path and TimeZone; not more often than "every". "key": columns that say which rows are the same violation, when others change. "definition": whose sagas are to be found that touched what is wrong; with "pause" it takes no new ones when there is a violation, and those that run are paused. An invariant of the same name is replaced, by its owner';

CREATE FUNCTION saga.drop_invariant(name text)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_drop_invariant';
COMMENT ON FUNCTION saga.drop_invariant(text) IS
    'remove an invariant of one''s own, with its violations';

CREATE FUNCTION saga.check_invariant(name text)
RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE
AS 'MODULE_PATHNAME', 'saga_check_invariant';
COMMENT ON FUNCTION saga.check_invariant(text) IS
    'check one invariant now, as its owner; returns how many violations there are. Sees what is committed; an error of the query is raised, and kept. For its owner and operators';

CREATE PROCEDURE saga.check_invariants(
    time_budget interval DEFAULT '10 min',
    INOUT checked bigint DEFAULT NULL,
    INOUT violated bigint DEFAULT NULL,
    INOUT failed bigint DEFAULT NULL)
LANGUAGE c
AS 'MODULE_PATHNAME', 'saga_check_invariants';
COMMENT ON PROCEDURE saga.check_invariants(interval, bigint, bigint, bigint) IS
    'check all invariants that are due, each as its owner: those of roles whose privileges the current user has; for operators all. Those that took long last time come last, and none may run when the time is over. Returns how many were checked, how many of them are violated, and how many could not be checked';

CREATE VIEW saga.invariants WITH (security_barrier) AS
    SELECT i.name AS invariant, i.definition, i.owner_name AS owner,
           CASE WHEN i.error IS NOT NULL THEN 'failed'
                WHEN i.checked_at IS NULL THEN 'not checked'
                WHEN i.violations > 0 THEN 'violated' ELSE 'good' END AS state,
           i.violations, i.truncated,
           (SELECT pg_catalog.min(v.first_seen) FROM saga.violation v
            WHERE v.invariant_id = i.id AND v.ended_at IS NULL) AS violated_since,
           i.checked_at, i.duration, i.checks,
           CASE WHEN x.whole THEN i.error END AS error, i.error_since,
           i.pause, i.timeout, i.max_rows, i.every, i.key,
           CASE WHEN x.whole THEN i.query END AS query, i.created_at
    FROM saga.invariant i
    CROSS JOIN LATERAL (
        SELECT (pg_catalog.pg_has_role(i.owner, 'USAGE')
                AND i.owner_name = pg_catalog.pg_get_userbyid(i.owner))
               OR (SELECT pg_catalog.has_function_privilege('saga.monitor_privilege()', 'EXECUTE')) AS whole) x
    WHERE x.whole OR pg_catalog.pg_has_role('pg_monitor', 'USAGE');
COMMENT ON VIEW saga.invariants IS
    'invariants of roles that the current user is a member of, and how their last check went; members of pg_monitor see all of them, without query and error';
COMMENT ON COLUMN saga.invariants.invariant IS 'its name';
COMMENT ON COLUMN saga.invariants.definition IS 'definition whose sagas it is about';
COMMENT ON COLUMN saga.invariants.owner IS 'role as which the query is run';
COMMENT ON COLUMN saga.invariants.state IS 'good, violated, failed (the last check), not checked (yet)';
COMMENT ON COLUMN saga.invariants.violations IS 'how many the last check that succeeded has left';
COMMENT ON COLUMN saga.invariants.truncated IS 'it found more than max_rows';
COMMENT ON COLUMN saga.invariants.violated_since IS 'when the first of those that hold was seen';
COMMENT ON COLUMN saga.invariants.checked_at IS 'when it was last checked with success';
COMMENT ON COLUMN saga.invariants.duration IS 'of the last check';
COMMENT ON COLUMN saga.invariants.checks IS 'how often it was checked';
COMMENT ON COLUMN saga.invariants.error IS 'why the last check failed: sqlstate, message, detail, hint, context';
COMMENT ON COLUMN saga.invariants.error_since IS 'since when all checks have failed';
COMMENT ON COLUMN saga.invariants.pause IS 'is the definition paused by a violation?';
COMMENT ON COLUMN saga.invariants.timeout IS 'for so long the query may run';
COMMENT ON COLUMN saga.invariants.max_rows IS 'so many rows are read';
COMMENT ON COLUMN saga.invariants.every IS 'saga.check_invariants() checks it not more often; NULL = each time';
COMMENT ON COLUMN saga.invariants.key IS 'columns that say which rows are the same violation; NULL = all';
COMMENT ON COLUMN saga.invariants.query IS 'that finds what must not be';
COMMENT ON COLUMN saga.invariants.created_at IS 'when it was added, or replaced';

CREATE VIEW saga.violations WITH (security_barrier) AS
    SELECT v.id, i.name AS invariant, i.definition, v."row", v.first_seen, v.last_seen,
           v.ended_at, v.since AS good_until, v.sagas, v.more_sagas
    FROM saga.violation v
    JOIN saga.invariant i ON i.id = v.invariant_id
    WHERE (pg_catalog.pg_has_role(i.owner, 'USAGE')
           AND i.owner_name = pg_catalog.pg_get_userbyid(i.owner))
       OR (SELECT pg_catalog.has_function_privilege('saga.monitor_privilege()', 'EXECUTE'));
COMMENT ON VIEW saga.violations IS
    'what invariants of roles that the current user is a member of have found, also if it has ended, for 90 days';
COMMENT ON COLUMN saga.violations.id IS 'in the order in which they were found';
COMMENT ON COLUMN saga.violations.invariant IS 'what is violated';
COMMENT ON COLUMN saga.violations.definition IS 'definition that it is about';
COMMENT ON COLUMN saga.violations."row" IS 'what the query has returned, when it was seen last';
COMMENT ON COLUMN saga.violations.first_seen IS 'the first check that found it';
COMMENT ON COLUMN saga.violations.last_seen IS 'the last check that found it';
COMMENT ON COLUMN saga.violations.ended_at IS 'the first check that did not find it any more; NULL = it holds';
COMMENT ON COLUMN saga.violations.good_until IS 'the last check before first_seen: it did not find it; NULL = there was none';
COMMENT ON COLUMN saga.violations.sagas IS 'sagas that did something between good_until and first_seen, and whose input or results agree with the row: the last 100';
COMMENT ON COLUMN saga.violations.more_sagas IS 'there are more of them';

------------------------------------------------------------------------------
-- Alerts: what somebody should see to
------------------------------------------------------------------------------

-- A union at the top of a view would be taken apart, and its barrier lost.
CREATE VIEW saga.alerts WITH (security_barrier) AS
    SELECT u.alert, u.severity, u.since, u.subject, u.saga_id, u.definition, u.message, u.hint
    FROM (
        SELECT c.kind AS alert,
               CASE WHEN c.kind IN ('stuck', 'deadlock', 'invariant', 'no_worker')
                    THEN 'critical' ELSE 'warning' END AS severity,
               c.since, c.subject, c.saga_id, c.definition,
               CASE WHEN x.whole THEN c.message END AS message,
               CASE c.kind
                   WHEN 'stuck' THEN pg_catalog.format('SELECT * FROM saga.explain(%s); then saga.retry(%s), saga.skip(%s) or saga.abandon(%s)', c.saga_id, c.saga_id, c.saga_id, c.saga_id)
                   WHEN 'overdue' THEN pg_catalog.format('SELECT * FROM saga.explain(%s)', c.saga_id)
                   WHEN 'deadlock' THEN pg_catalog.format('SELECT saga.abandon(%s), or another of the sagas that the message names', c.saga_id)
                   WHEN 'breaker' THEN CASE WHEN c.fields ? 'queue'
                       THEN pg_catalog.format('SELECT * FROM saga.queues WHERE queue = %L; then saga.reset_breaker(queue => %L)', c.fields ->> 'queue', c.fields ->> 'queue')
                       ELSE pg_catalog.format('SELECT * FROM saga.servers WHERE server = %L; then saga.reset_breaker(server => %L)', c.fields ->> 'server', c.fields ->> 'server') END
                   WHEN 'invariant' THEN pg_catalog.format('SELECT * FROM saga.violations WHERE invariant = %L AND ended_at IS NULL', c.fields ->> 'invariant')
                   WHEN 'invariant_failed' THEN pg_catalog.format('SELECT error FROM saga.invariants WHERE invariant = %L', c.fields ->> 'invariant')
                   WHEN 'no_worker' THEN 'SELECT * FROM saga.workers WHERE state = ''absent'''
               END AS hint
        FROM saga.condition c
        CROSS JOIN LATERAL (
            SELECT (pg_catalog.pg_has_role(c.role, 'USAGE')
                    AND c.role_name = pg_catalog.pg_get_userbyid(c.role))
                   OR (SELECT pg_catalog.has_function_privilege('saga.monitor_privilege()', 'EXECUTE')) AS whole) x
        WHERE x.whole OR pg_catalog.pg_has_role('pg_monitor', 'USAGE')
        UNION ALL
        -- without a launcher nobody notices anything
        SELECT 'no_worker', 'critical', NULL, 'all roles', NULL, NULL,
               COALESCE(w.reason, 'there is no saga launcher'),
               'SELECT * FROM saga.workers WHERE state = ''absent'''
        FROM saga.workers_raw() w
        WHERE w.process = 'launcher' AND (w.state = 'absent' OR w.reason IS NOT NULL)
          AND NOT pg_catalog.pg_is_in_recovery()
          AND EXISTS (SELECT FROM saga.saga s WHERE s.due_at IS NOT NULL)
          AND ((SELECT pg_catalog.has_function_privilege('saga.monitor_privilege()', 'EXECUTE')) OR pg_catalog.pg_has_role('pg_monitor', 'USAGE'))) u;
COMMENT ON VIEW saga.alerts IS
    'what somebody should see to, as long as it is so, of roles that the current user is a member of; when one comes and when it goes saga_alert is notified. Members of pg_monitor see all of them, without messages';
COMMENT ON COLUMN saga.alerts.alert IS
    'stuck: a saga waits for a person; deadlock: sagas wait for each other''s locks; overdue: a saga is past its deadline and has not ended; breaker: tasks of a queue, or calls of a server, are held back for their failures; no_worker: sagas of a role are due, and it can have no worker; invariant: it is violated; invariant_failed: it could not be checked';
COMMENT ON COLUMN saga.alerts.severity IS 'critical: nothing goes on without a person, or books do not add up; or warning';
COMMENT ON COLUMN saga.alerts.since IS 'when it was noticed';
COMMENT ON COLUMN saga.alerts.subject IS 'what it is about: "saga 5", "queue mail", "server stock, role app", "role app", "invariant stock"';
COMMENT ON COLUMN saga.alerts.saga_id IS 'the saga, if it is about one';
COMMENT ON COLUMN saga.alerts.definition IS 'name of its definition';
COMMENT ON COLUMN saga.alerts.message IS 'what is known of it';
COMMENT ON COLUMN saga.alerts.hint IS 'what shows more, and what mends it';


------------------------------------------------------------------------------
-- Metrics
--
-- What a monitoring system asks for every few seconds, about this database.
-- Labels are names of definitions, steps, queues, servers and roles and words
-- from fixed lists, never sagas, keys or messages: how many series there are is
-- bounded by what was defined.  Each series appears once, since an exporter
-- shows nothing at all when one appears twice.  A scrape reads shared memory,
-- ends of indexes, and catalogs; it counts no rows beyond a limit.
------------------------------------------------------------------------------

CREATE FUNCTION saga.metrics_label(name text) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.=) 'UTF8'
                  OR pg_catalog.getdatabaseencoding() OPERATOR(pg_catalog.=) 'LATIN1'
                THEN COALESCE($1, '')
                ELSE COALESCE(pg_catalog.encode(pg_catalog.convert_to($1, pg_catalog.getdatabaseencoding()), 'escape'), '') END
$$;
COMMENT ON FUNCTION saga.metrics_label(text) IS
    'for view saga.metrics: a name as monitoring systems can have it. In a database whose encoding allows what UTF-8 has not, what is not ASCII is escaped, else one such name would keep all the others from being read';

CREATE FUNCTION saga.metrics_raw(part text DEFAULT NULL, metric text DEFAULT NULL)
RETURNS TABLE (name text, labels jsonb, value double precision)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE ROWS 500
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    -- tasks and calls that wait are counted up to this, per queue and server
    most CONSTANT bigint := 10000;
    -- a subtraction of timestamps fails if one is infinite, this does not
    present CONSTANT double precision := date_part('epoch', clock_timestamp());
    here CONSTANT oid := d.oid FROM pg_database d WHERE d.datname = current_database();
BEGIN
    IF part NOT IN ('definitions', 'steps', 'queues', 'servers', 'processes', 'database', 'alerts') THEN
        RAISE EXCEPTION 'unrecognized part of the metrics: "%"', part
            USING ERRCODE = '22023',
                  HINT = 'The parts are definitions, steps, queues, servers, processes, database and alerts.';
    END IF;

    IF part IS NULL OR part = 'processes' THEN
        RETURN QUERY
        WITH w AS MATERIALIZED (
            SELECT p.process, p.state, p.reason, r.rolname, p.role,
                   greatest(present - date_part('epoch', p.since), 0) AS age
            FROM saga.workers_raw() p
            LEFT JOIN pg_roles r ON r.oid = p.role
            WHERE p.database IS NULL OR p.database = here
        )
        SELECT m.name, m.labels, m.value::double precision
        FROM (
            SELECT 'saga_version_info', jsonb_build_object('version', e.extversion), 1
            FROM pg_extension e WHERE e.extname = 'saga'
            UNION ALL
            SELECT 'saga_launcher_enabled', '{}',
                   (w.reason IS NULL OR w.reason = 'recovery is in progress')::integer
            FROM w WHERE w.process = 'launcher'
            UNION ALL
            SELECT 'saga_launcher_running', '{}', (w.state = 'running')::integer
            FROM w WHERE w.process = 'launcher'
            UNION ALL
            SELECT 'saga_launcher_in_recovery', '{}', pg_is_in_recovery()::integer
            UNION ALL
            SELECT 'saga_live_processes', jsonb_build_object('process', k.process, 'state', k.state),
                   (SELECT count(*) FROM w WHERE w.process = k.process AND w.state = k.state)
            FROM (SELECT * FROM unnest('{coordinator,courier,worker,foreground}'::text[]) process,
                                unnest('{starting,idle,running,stopping}'::text[]) state) k
            UNION ALL
            SELECT 'saga_process_absent_seconds',
                   jsonb_build_object('process', w.process,
                       'role', saga.metrics_label(COALESCE(w.rolname, w.role::text)),
                       'reason', COALESCE(w.reason, '')),
                   max(COALESCE(w.age, 0))
            FROM w WHERE w.state = 'absent' AND w.process <> 'launcher'
            GROUP BY 2
        ) m(name, labels, value)
        WHERE metric IS NULL OR m.name = metric;
    END IF;

    IF part IS NULL OR part = 'definitions' THEN
        RETURN QUERY
        SELECT m.name, jsonb_build_object('definition', saga.metrics_label(h.definition)) || m.labels, m.value
        FROM saga.health h
        CROSS JOIN LATERAL (VALUES
            ('saga_sagas', '{"status": "scheduled"}'::jsonb, h.scheduled::double precision),
            ('saga_sagas', '{"status": "running"}', h.running),
            ('saga_sagas', '{"status": "compensating"}', h.compensating),
            ('saga_sagas', '{"status": "held"}', h.held),
            ('saga_sagas', '{"status": "stuck"}', h.stuck),
            ('saga_sagas', '{"status": "paused"}', h.paused),
            ('saga_oldest_unfinished_seconds', '{}', COALESCE(greatest(present - date_part('epoch', h.oldest_created_at), 0), 0)),
            ('saga_definition_enabled', '{}', h.enabled::integer),
            ('saga_begun_total', '{}', h.begun),
            ('saga_ended_total', '{"outcome": "completed"}', h.completed),
            ('saga_ended_total', '{"outcome": "compensated"}', h.compensated),
            ('saga_ended_total', '{"outcome": "abandoned"}', h.abandoned),
            ('saga_ended_seconds_total', '{}', h.seconds),
            ('saga_duration_seconds', '{"window": "1m", "percentile": "50"}', date_part('epoch', h.p50_1m)),
            ('saga_duration_seconds', '{"window": "1m", "percentile": "95"}', date_part('epoch', h.p95_1m)),
            ('saga_duration_seconds', '{"window": "1m", "percentile": "99"}', date_part('epoch', h.p99_1m)),
            ('saga_duration_seconds', '{"window": "1h", "percentile": "50"}', date_part('epoch', h.p50_1h)),
            ('saga_duration_seconds', '{"window": "1h", "percentile": "95"}', date_part('epoch', h.p95_1h)),
            ('saga_duration_seconds', '{"window": "1h", "percentile": "99"}', date_part('epoch', h.p99_1h))
        ) m(name, labels, value)
        WHERE m.value IS NOT NULL AND (metric IS NULL OR m.name = metric);

        IF metric IS NULL OR metric = 'saga_waiting_sagas' THEN
            RETURN QUERY
            SELECT 'saga_waiting_sagas',
                   jsonb_build_object('definition', saga.metrics_label(h.definition), 'reason', r.key),
                   r.value::double precision
            FROM saga.health_raw() h
            CROSS JOIN LATERAL jsonb_each_text(h.waiting) r;
        END IF;
    END IF;

    IF part IS NULL OR part = 'steps' THEN
        RETURN QUERY
        SELECT m.name,
               jsonb_build_object('definition', saga.metrics_label(h.definition),
                   'step', saga.metrics_label(h.step), 'operation', h.operation::text) || m.labels,
               m.value
        FROM saga.step_health_raw() h
        CROSS JOIN LATERAL (VALUES
            ('saga_step_attempts_total', '{"outcome": "succeeded"}'::jsonb, h.succeeded::double precision),
            ('saga_step_attempts_total', '{"outcome": "failed"}', h.failed),
            ('saga_step_seconds_total', '{}', h.seconds),
            ('saga_step_duration_seconds', '{"window": "1m", "percentile": "50"}', date_part('epoch', h.p50_1m)),
            ('saga_step_duration_seconds', '{"window": "1m", "percentile": "95"}', date_part('epoch', h.p95_1m)),
            ('saga_step_duration_seconds', '{"window": "1m", "percentile": "99"}', date_part('epoch', h.p99_1m)),
            ('saga_step_duration_seconds', '{"window": "1h", "percentile": "50"}', date_part('epoch', h.p50_1h)),
            ('saga_step_duration_seconds', '{"window": "1h", "percentile": "95"}', date_part('epoch', h.p95_1h)),
            ('saga_step_duration_seconds', '{"window": "1h", "percentile": "99"}', date_part('epoch', h.p99_1h))
        ) m(name, labels, value)
        WHERE m.value IS NOT NULL AND (metric IS NULL OR m.name = metric);
    END IF;

    IF part IS NULL OR part = 'queues' THEN
        RETURN QUERY
        SELECT m.name, jsonb_build_object('queue', saga.metrics_label(q.name)) || m.labels, m.value
        FROM saga.queue q
        CROSS JOIN LATERAL saga.queues_raw(q.id, most) i
        CROSS JOIN LATERAL (VALUES
            ('saga_queue_ready_tasks', '{}'::jsonb, i.ready::double precision),
            ('saga_queue_claimed_tasks', '{}', i.claimed),
            ('saga_queue_oldest_ready_seconds', '{}', COALESCE(greatest(present - date_part('epoch', i.oldest_ready), 0), 0)),
            ('saga_queue_oldest_claimed_seconds', '{}', COALESCE(greatest(present - date_part('epoch', i.oldest_claimed), 0), 0)),
            ('saga_queue_offered_total', '{}', i.offered),
            ('saga_queue_tasks_total', '{"outcome": "completed"}', i.completed),
            ('saga_queue_tasks_total', '{"outcome": "failed"}', i.failed),
            ('saga_queue_tasks_total', '{"outcome": "expired"}', i.expired),
            ('saga_queue_participants', '{}', i.participants),
            ('saga_queue_breaker_open', '{}', (i.breaker <> 'closed')::integer),
            ('saga_queue_paused', '{}', q.paused::integer)
        ) m(name, labels, value)
        -- it is null if it was dropped just now
        WHERE i.ready IS NOT NULL AND (metric IS NULL OR m.name = metric);
    END IF;

    IF part IS NULL OR part = 'servers' THEN
        RETURN QUERY
        SELECT m.name, jsonb_build_object('foreign_server', saga.metrics_label(r.server), 'role', saga.metrics_label(r.role_name)) || m.labels, m.value
        FROM saga.server_role r
        CROSS JOIN LATERAL saga.servers_raw(r.id, most) i
        CROSS JOIN LATERAL (VALUES
            ('saga_server_connections', '{}'::jsonb, i.connections::double precision),
            ('saga_server_in_flight_calls', '{}', i.in_flight),
            ('saga_server_ready_calls', '{}', i.ready),
            ('saga_server_oldest_ready_seconds', '{}', COALESCE(greatest(present - date_part('epoch', i.oldest_ready), 0), 0)),
            ('saga_server_calls_total', '{"outcome": "succeeded"}', i.calls - i.failed),
            ('saga_server_calls_total', '{"outcome": "failed"}', i.failed),
            ('saga_server_calls_total', '{"outcome": "lost"}', i.lost),
            ('saga_server_unreachable_total', '{}', i.unreachable),
            ('saga_server_latency_seconds', '{"percentile": "50"}', date_part('epoch', i.latency_p50)),
            ('saga_server_latency_seconds', '{"percentile": "99"}', date_part('epoch', i.latency_p99)),
            ('saga_server_breaker_open', '{}', (i.breaker <> 'closed')::integer),
            ('saga_server_paused', '{}', (i.state = 'paused')::integer)
        ) m(name, labels, value)
        -- after a role was made anew there may be two rows of its name
        WHERE r.role_name = pg_get_userbyid(r.role)
          AND i.ready IS NOT NULL AND m.value IS NOT NULL AND (metric IS NULL OR m.name = metric);
    END IF;

    IF part IS NULL OR part = 'database' THEN
        RETURN QUERY
        SELECT m.name, '{}'::jsonb, m.value::double precision
        FROM saga.vitals v
        CROSS JOIN LATERAL (VALUES
            ('saga_database_oldest_due_seconds', COALESCE(greatest(present - date_part('epoch', v.oldest_due_at), 0), 0)),
            ('saga_database_oldest_kept_seconds', COALESCE(greatest(present - date_part('epoch', v.oldest_kept), 0), 0)),
            ('saga_database_dead_tuples', COALESCE(v.dead_tuples, 0)),
            ('saga_database_dead_tuples_ratio', COALESCE(v.worst_table_ratio, 0)),
            ('saga_database_horizon_age_transactions', v.horizon_age),
            ('saga_database_horizon_age_seconds', COALESCE(greatest(present - date_part('epoch', v.horizon_since), 0), 0))
        ) m(name, value)
        WHERE metric IS NULL OR m.name = metric;
    END IF;

    IF part IS NULL OR part = 'alerts' THEN
        RETURN QUERY
        SELECT m.name, m.labels, m.value::double precision
        FROM (
            SELECT 'saga_active_alerts', jsonb_build_object('alert', k.kind), c.n
            FROM unnest('{stuck,deadlock,overdue,breaker,no_worker,invariant,invariant_failed}'::text[]) k(kind)
            CROSS JOIN LATERAL (
                SELECT count(*) AS n
                FROM (SELECT FROM saga.condition x WHERE x.kind = k.kind LIMIT most) y) c
            UNION ALL
            SELECT 'saga_invariant_violations', jsonb_build_object('invariant', saga.metrics_label(i.name)), i.violations
            FROM saga.invariant i
            UNION ALL
            SELECT 'saga_invariant_failed', jsonb_build_object('invariant', saga.metrics_label(i.name)), (i.error IS NOT NULL)::integer
            FROM saga.invariant i
        ) m(name, labels, value)
        WHERE metric IS NULL OR m.name = metric;
    END IF;
END
$$;
COMMENT ON FUNCTION saga.metrics_raw(text, text) IS
    'what is behind view saga.metrics; one part of it (definitions, steps, queues, servers, processes, database, alerts), or one metric of that part, if so asked';

CREATE VIEW saga.metrics WITH (security_barrier) AS
    SELECT m.name, m.labels, m.value, k.type, k.help
    FROM saga.metrics_raw() m
    JOIN (VALUES
        ('saga_version_info', 'gauge', 'Always 1; the label is the version of the extension.'),
        ('saga_launcher_enabled', 'gauge', '1 if saga is preloaded and saga.enabled is on.'),
        ('saga_launcher_running', 'gauge', '1 if the launcher of the server runs.'),
        ('saga_launcher_in_recovery', 'gauge', '1 if the server is a standby, where nothing of saga runs.'),
        ('saga_live_processes', 'gauge', 'Processes of saga that work for this database.'),
        ('saga_process_absent_seconds', 'gauge', 'For how long a process has been wanted that is not there; the label says why.'),
        ('saga_sagas', 'gauge', 'Sagas that are not final.'),
        ('saga_waiting_sagas', 'gauge', 'Sagas that wait, by what they wait for; worker: somebody is to go on with them.'),
        ('saga_oldest_unfinished_seconds', 'gauge', 'Age of the oldest saga that is not final.'),
        ('saga_definition_enabled', 'gauge', '1 if sagas of the definition may be begun.'),
        ('saga_begun_total', 'counter', 'Sagas that were begun.'),
        ('saga_ended_total', 'counter', 'Sagas that have ended.'),
        ('saga_ended_seconds_total', 'counter', 'Time from the begin to the end of the sagas that have ended.'),
        ('saga_duration_seconds', 'gauge', 'How long sagas took that have ended in the last minute or hour.'),
        ('saga_step_attempts_total', 'counter', 'Attempts of operations of steps.'),
        ('saga_step_seconds_total', 'counter', 'Time that the attempts took.'),
        ('saga_step_duration_seconds', 'gauge', 'How long attempts took that have ended in the last minute or hour.'),
        ('saga_queue_ready_tasks', 'gauge', 'Tasks that nobody has claimed; at most 10000 are counted.'),
        ('saga_queue_claimed_tasks', 'gauge', 'Tasks in work; at most 10000 are counted.'),
        ('saga_queue_oldest_ready_seconds', 'gauge', 'Age of the oldest task that nobody has claimed.'),
        ('saga_queue_oldest_claimed_seconds', 'gauge', 'How long the oldest claim has lasted.'),
        ('saga_queue_offered_total', 'counter', 'Tasks that were offered.'),
        ('saga_queue_tasks_total', 'counter', 'Tasks that have ended.'),
        ('saga_queue_participants', 'gauge', 'Participants that have looked for tasks in the last 5 minutes.'),
        ('saga_queue_breaker_open', 'gauge', '1 if the breaker keeps the tasks back, or lets one through to see.'),
        ('saga_queue_paused', 'gauge', '1 if the queue was paused by saga.configure_queue().'),
        ('saga_server_connections', 'gauge', 'Open connections to a foreign server.'),
        ('saga_server_in_flight_calls', 'gauge', 'Calls that were sent and have no answer yet.'),
        ('saga_server_ready_calls', 'gauge', 'Calls that wait to be sent; at most 10000 are counted.'),
        ('saga_server_oldest_ready_seconds', 'gauge', 'How long the oldest call has waited to be sent.'),
        ('saga_server_calls_total', 'counter', 'Calls by how they ended.'),
        ('saga_server_unreachable_total', 'counter', 'Connections that could not be made.'),
        ('saga_server_latency_seconds', 'gauge', 'From sending a call to its answer, lately.'),
        ('saga_server_breaker_open', 'gauge', '1 if the breaker keeps the calls back, or lets one through to see.'),
        ('saga_server_paused', 'gauge', '1 if the server was paused by saga.configure_server().'),
        ('saga_database_oldest_due_seconds', 'gauge', 'How long the oldest saga that could go on has waited for a worker.'),
        ('saga_database_oldest_kept_seconds', 'gauge', 'Age of the oldest saga that is stored.'),
        ('saga_database_dead_tuples', 'gauge', 'Rows of saga''s tables that vacuum is to remove.'),
        ('saga_database_dead_tuples_ratio', 'gauge', 'Part of the rows that are dead, in the table where that is worst.'),
        ('saga_database_horizon_age_transactions', 'gauge', 'Transactions begun since the oldest snapshot that keeps vacuum from removing rows.'),
        ('saga_database_horizon_age_seconds', 'gauge', 'How long ago the transaction with that snapshot began; 0 if it is a replication slot.'),
        ('saga_active_alerts', 'gauge', 'Conditions that hold, by kind, as saga.alerts has them; at most 10000 of a kind are counted.'),
        ('saga_invariant_violations', 'gauge', 'Violations that the last check of an invariant has found.'),
        ('saga_invariant_failed', 'gauge', '1 if the last check of an invariant failed.')
    ) k(name, type, help) ON k.name = m.name;
COMMENT ON VIEW saga.metrics IS
    'numbers of this database for monitoring systems, in the manner of Prometheus; for members of pg_monitor and those who have saga.grant_monitor()';
COMMENT ON COLUMN saga.metrics.name IS 'of the metric; it ends in _total if it is a counter';
COMMENT ON COLUMN saga.metrics.labels IS 'which of the metric: an object of strings; never of a single saga';
COMMENT ON COLUMN saga.metrics.value IS 'seconds, rows, sagas ...: as the name says';
COMMENT ON COLUMN saga.metrics.type IS 'counter: only grows, but begins anew after a crash or saga.reset_statistics(); gauge: may do both';
COMMENT ON COLUMN saga.metrics.help IS 'what it is';

CREATE FUNCTION saga.result(saga_id bigint) RETURNS jsonb
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT s.result FROM saga.sagas s WHERE s.saga_id OPERATOR(pg_catalog.=) $1
$$;
COMMENT ON FUNCTION saga.result(bigint) IS
    'result of the last step that has succeeded of a saga that has completed; NULL otherwise';

CREATE FUNCTION saga.explain_tree(saga_id bigint, parent_id bigint)
RETURNS TABLE (depth integer, path text, detail text)
LANGUAGE sql STABLE PARALLEL RESTRICTED ROWS 10
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    WITH RECURSIVE tree(depth, path, saga_id, definition, status, waiting_for, n) AS (
        SELECT 0, '', x.saga_id, x.definition, x.status, x.waiting_for, 1::bigint
        FROM saga.sagas x WHERE x.saga_id = $1
        UNION ALL
        -- of very many children the first ones, those that have not ended before all
        SELECT p.depth + 1, p.path || lpad(c.n::text, 3, '0'),
               c.saga_id, c.definition, c.status, c.waiting_for, c.n
        FROM tree p
        CROSS JOIN LATERAL (
            SELECT x.saga_id, x.definition, x.status, x.waiting_for,
                   row_number() OVER (ORDER BY x.finished_at IS NOT NULL, x.saga_id) AS n
            FROM saga.sagas x WHERE x.parent_id = p.saga_id
            ORDER BY n LIMIT 51) c
        WHERE p.n <= 50
    )
    SELECT t.depth, t.path,
           repeat('  ', t.depth - 1)
           || CASE WHEN t.n > 50 THEN 'and more: see saga.sagas'
                   ELSE format('saga %s of %s, %s%s', t.saga_id, t.definition, t.status,
                            ', waits for ' || NULLIF(t.waiting_for, 'parent')) END
    FROM tree t WHERE t.depth > 0
    UNION ALL
    SELECT 0, '', format('saga %s of %s, %s', x.saga_id, x.definition, x.status)
    FROM saga.sagas x WHERE x.saga_id = $2
$$;
COMMENT ON FUNCTION saga.explain_tree(bigint, bigint) IS
    'what saga.explain() says of the parent and the children of a saga';

CREATE FUNCTION saga.explain_pause(saga_id bigint) RETURNS text
LANGUAGE sql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
    SELECT format('paused by %s at %s%s', h.requested_by, h.requested_at, ', ' || h.reason)
    FROM saga.requests h WHERE h.saga_id = $1 AND h.verb = 'pause'
    ORDER BY h.id DESC LIMIT 1
$$;
COMMENT ON FUNCTION saga.explain_pause(bigint) IS 'what saga.explain() says of a saga that is paused';

CREATE FUNCTION saga.explain(saga_id bigint)
RETURNS TABLE (topic text, detail text)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
BEGIN
    -- planned once in a session: that takes longer than all the rest
    RETURN QUERY
    WITH s AS MATERIALIZED (
        SELECT x.saga_id, x.definition, x.version, x.key, x.owner, x.status,
               x.compensates, x.waiting_for, x.next_attempt_at, x.error, x.parent_id,
               x.remote_coordinator IS NOT NULL AS has_remote_parent, x.remote_parent_id,
               x.created_at, x.finished_at, x.deadline,
               x.status IN ('completed', 'compensated', 'abandoned') AS final
        FROM saga.sagas x WHERE x.saga_id = $1
    ), r AS MATERIALIZED (
        -- the steps as they were defined, and what each says of itself
        SELECT x.*, concat_ws(', ',
                   'at server ' || x.server, 'done ' || x.guarantee,
                   CASE WHEN x.after = '{}' THEN 'after nothing'
                        ELSE 'after ' || array_to_string(x.after, ', ') END,
                   'only_if ' || x.only_if || CASE WHEN x.not_taken THEN ': not taken' ELSE '' END,
                   CASE WHEN NOT x.done THEN 'takes turns by ' || x.exclusive END,
                   CASE WHEN x.off THEN 'not on its way' END,
                   CASE WHEN x.recoveries IS NOT NULL
                        THEN format('savepoint, went forward again %s of %s times',
                                 x.recovered, x.recoveries) END) AS notes
        FROM s CROSS JOIN LATERAL saga.explain_raw(s.saga_id) x
    ), t AS MATERIALIZED (
        SELECT x.position, x.step, x.operation, x.status, x.attempts, x.failures,
               x.error, x.next_attempt_at, x.element, x.round, x.child_id,
               x.waits_until, x.cancelled, x.surplus, x.unknown,
               x.task_id, x.waiting_for,
               r.kind, r.server, r.foreach, r.elements, r.quorum,
               x.round = COALESCE(r.round, x.round) AS present,
               x.step || COALESCE('[' || x.element || ']', '') AS name,
               x.status = 'pending' AND x.result IS NOT NULL AS signalled,
               r.confirmation IS NOT NULL AND x.operation = 'action' AND x.status = 'succeeded'
                   AND NOT bool_or(x.operation = 'confirmation') OVER (PARTITION BY x.position)
                   AS unconfirmed,
               CASE WHEN x.operation = 'action' AND x.round = r.round THEN r.notes END AS notes,
               x.position::bigint * 1000000 + x.round * 3
               + CASE x.operation WHEN 'action' THEN 0 WHEN 'compensation' THEN 1 ELSE 2 END AS line
        FROM saga.steps x LEFT JOIN r ON r.position = x.position
        WHERE x.saga_id = $1
    ), w AS MATERIALIZED (
        SELECT * FROM saga.workers x
        WHERE x.database IS NULL OR x.database = current_database()
    ), k AS MATERIALIZED (
        SELECT x.lock, x.kind, x.status, x.until_step,
               CASE WHEN x.status = 'waiting' THEN concat_ws(', ',
                   'number ' || x.position || ' in line',
                   'held by saga ' || array_to_string(x.held_by[1:5], ', '),
                   'until ' || x.expires_at) END AS line,
               x.step, x.places
        FROM saga.locks x WHERE x.saga_id = $1
    ), one AS (
        -- an operation, or an element in trouble
        SELECT x.*, row_number() OVER (PARTITION BY x.line ORDER BY x.element) AS n
        FROM t x WHERE x.foreach IS NULL OR x.status IN ('waiting', 'failed')
    ), many AS (
        -- the elements of a step, all together
        SELECT x.line, min(x.operation) AS operation, min(x.step) AS step,
               min(x.round) AS round, min(x.notes) AS notes,
               CASE WHEN min(x.operation) = 'action' THEN min(x.quorum) END AS quorum,
               CASE WHEN min(x.operation) = 'action' AND bool_and(x.present)
                    THEN min(x.elements) END AS elements,
               count(x.element) AS rows, min(x.foreach) AS foreach, min(x.status) AS status,
               count(*) FILTER (WHERE x.status = 'succeeded') AS succeeded,
               count(*) FILTER (WHERE x.status = 'running') AS running,
               count(*) FILTER (WHERE x.status = 'waiting') AS waiting,
               count(*) FILTER (WHERE x.status = 'failed') AS failed,
               count(*) FILTER (WHERE x.status = 'skipped') AS skipped,
               count(*) FILTER (WHERE x.surplus) AS surplus
        FROM t x WHERE x.foreach IS NOT NULL
        GROUP BY x.line
    ), waits AS (
        SELECT x.line, x.step,
               CASE WHEN x.status = 'waiting'
                    THEN 'the next attempt of ' || x.name || ' at ' || x.next_attempt_at
                    WHEN x.kind IN ('external', 'remote') OR x.server IS NOT NULL
                    THEN concat_ws(': ', CASE WHEN x.element IS NOT NULL THEN x.name END,
                        COALESCE(x.waiting_for, format('%s, for the %s of %s',
                            COALESCE('server ' || x.server, 'a participant'), x.operation, x.name)))
                    WHEN x.child_id IS NOT NULL
                    THEN format('saga %s, child of %s', x.child_id, x.name)
                    WHEN x.kind = 'signal'
                    THEN format('saga.signal() with "%s"%s', x.step, ' until ' || x.waits_until)
                    WHEN x.kind = 'timer'
                    THEN format('the time of %s, %s', x.name, x.waits_until)
                    ELSE 'another worker, for the ' || x.operation || ' of ' || x.name END AS detail,
               row_number() OVER (PARTITION BY x.line ORDER BY x.element) AS n
        FROM s, t x
        WHERE x.present AND NOT s.final
          AND (s.waiting_for IS NULL
               OR s.waiting_for NOT IN ('saga.adopt()', 'start time', 'place', 'resume'))
          AND (x.status = 'running'
               OR (x.status = 'waiting'
                   AND (s.waiting_for IS NOT NULL OR x.next_attempt_at > clock_timestamp())))
          AND NOT (x.status = 'running' AND x.kind = 'local' AND x.element IS NULL
                   AND EXISTS (SELECT FROM w WHERE w.saga_id = s.saga_id
                                 AND w.step = x.step AND w.operation = x.operation))
    )
    SELECT l.topic, l.detail FROM (
        SELECT 1 AS n, 0 AS m, 0::bigint AS o, 'saga' AS topic,
               format('%s of %s version %s, begun by %s at %s%s',
                   s.saga_id, COALESCE(s.definition, 'an unknown definition'), s.version,
                   s.owner, s.created_at, COALESCE(', key ' || s.key, '')) AS detail
        FROM s
        UNION ALL
        SELECT 2, 0, 0, 'status',
               s.status || CASE WHEN s.final THEN ' since ' || s.finished_at
                                WHEN s.compensates THEN ', going back'
                                    || COALESCE((SELECT ' to savepoint ' || min(t.step)
                                                 FROM t JOIN r ON r.position = t.position
                                                 WHERE r.goal), '')
                                WHEN s.deadline IS NOT NULL THEN ', deadline ' || s.deadline
                                ELSE '' END
        FROM s
        UNION ALL
        SELECT 3, x.line, x.n * (x.foreach IS NOT NULL)::integer,
               x.operation || ' of ' || x.name,
               x.status
               || CASE WHEN x.attempts > 1 OR x.failures > 0
                       THEN format(', %s attempt%s', x.attempts,
                           CASE WHEN x.attempts <> 1 THEN 's' END) ELSE '' END
               || CASE WHEN x.status = 'waiting'
                       THEN ', next attempt at ' || x.next_attempt_at ELSE '' END
               || COALESCE(', ' || NULLIF(concat_ws(', ',
                      CASE WHEN x.signalled THEN 'its signal has come' END,
                      CASE WHEN x.status = 'running' AND x.kind = 'signal' THEN 'waits for saga.signal()' END,
                      CASE WHEN x.status = 'running' AND x.kind = 'local' THEN 'given to another worker' END,
                      'until ' || x.waits_until,
                      'saga ' || x.child_id,
                      CASE WHEN x.status = 'running' THEN 'task ' || x.task_id END,
                      CASE WHEN x.cancelled THEN 'asked to give up' END,
                      CASE WHEN x.unknown THEN 'outcome unknown' END,
                      CASE WHEN x.unconfirmed AND NOT s.final AND NOT s.compensates THEN 'to be confirmed' END,
                      CASE WHEN x.foreach IS NULL THEN NULLIF(x.notes, '') END,
                      'round ' || NULLIF(x.round, 0)), ''), '')
               || CASE WHEN x.status IN ('waiting', 'failed') AND x.error IS NOT NULL
                       THEN format(': %s (%s)', x.error ->> 'message', x.error ->> 'sqlstate')
                       ELSE '' END
        FROM s, one x WHERE x.foreach IS NULL OR x.n <= 5
        UNION ALL
        SELECT 3, x.line, 0, x.operation || ' of ' || x.step,
               CASE WHEN x.elements = 0 THEN x.foreach || ' has no elements'
                    WHEN x.rows = 0 THEN x.status || ' for each of ' || x.foreach
                         || COALESCE(', ' || x.elements || ' elements', '')
                    ELSE concat_ws(', ',
                        format('%s of %s elements succeeded', x.succeeded,
                            COALESCE(x.elements, x.rows)),
                        NULLIF(x.running, 0) || ' running', NULLIF(x.waiting, 0) || ' waiting',
                        NULLIF(x.failed, 0) || ' failed', NULLIF(x.skipped, 0) || ' skipped',
                        NULLIF(x.surplus, 0) || ' not needed') END
               || COALESCE('; quorum ' || x.quorum, '')
               || COALESCE('; ' || NULLIF(x.notes, ''), '')
               || COALESCE('; round ' || NULLIF(x.round, 0), '')
        FROM many x
        UNION ALL
        SELECT 3, x.line, 6, x.operation || ' of ' || x.step,
               format('%s more elements have failed or wait for their next attempt', count(*) - 5)
        FROM one x WHERE x.foreach IS NOT NULL
        GROUP BY x.line, x.operation, x.step HAVING count(*) > 5
        UNION ALL
        SELECT CASE c.depth WHEN 0 THEN 2 ELSE 4 END, 1,
               row_number() OVER (ORDER BY c.depth > 0, c.path),
               CASE c.depth WHEN 0 THEN 'parent' ELSE 'child' END, c.detail
        FROM s CROSS JOIN LATERAL saga.explain_tree(s.saga_id, s.parent_id) c
        WHERE s.parent_id IS NOT NULL OR EXISTS (SELECT FROM t WHERE t.child_id IS NOT NULL)
        UNION ALL
        SELECT 2, 1, 0, 'parent',
               COALESCE('saga ' || s.remote_parent_id, 'a saga') || ' of another database'
        FROM s WHERE s.has_remote_parent
        UNION ALL
        SELECT 5, 0, row_number() OVER (ORDER BY k.lock), 'lock',
               k.lock || ', held until the ' || COALESCE('end of ' || k.until_step, 'saga ends')
        FROM k WHERE k.kind = 'lock' AND k.status = 'held'
        UNION ALL
        SELECT 5, 1, row_number() OVER (ORDER BY k.step), 'place',
               format('step %s: it is one of at most %s saga%s', k.step, k.places,
                   CASE WHEN k.places <> 1 THEN 's' END)
        FROM k WHERE k.kind = 'step' AND k.status = 'held'
        UNION ALL
        SELECT 6, 0, 0, 'cause',
               concat_ws(' ', s.error ->> 'message',
                   '(' || (s.error ->> 'sqlstate') || ')',
                   'in ' || (s.error ->> 'operation') || ' of step ' || (s.error ->> 'step'))
               || COALESCE(': ' || (s.error ->> 'detail'), '')
        FROM s WHERE s.error IS NOT NULL
        UNION ALL
        SELECT 7, 0, 0, 'waits for', y.detail
        FROM s CROSS JOIN LATERAL (SELECT CASE
            WHEN s.waiting_for = 'saga.adopt()'
                THEN 'CALL saga.adopt(): it was begun in the database that this one is a copy of'
            WHEN s.waiting_for = 'start time'
                THEN 'its start at ' || s.next_attempt_at
            WHEN s.waiting_for = 'place'
                THEN format('a place: at most %s of %s may run at once',
                    (SELECT d.max_running FROM saga.definitions d WHERE d.name = s.definition),
                    s.definition)
                    || COALESCE(', ' || (SELECT k.line FROM k
                                         WHERE k.kind = 'place' AND k.status = 'waiting'), '')
            WHEN s.waiting_for = 'resume'
                THEN 'saga.resume(): ' || COALESCE(saga.explain_pause(s.saga_id), 'paused')
            WHEN s.status = 'held'
                THEN CASE WHEN s.has_remote_parent
                          THEN 'its parent, ' || COALESCE('saga ' || s.remote_parent_id, 'a saga')
                               || ' of another database'
                          ELSE 'its parent, saga ' || s.parent_id END
            WHEN s.status = 'stuck'
                THEN COALESCE(s.waiting_for, 'a person')
            WHEN s.waiting_for IS NOT NULL AND NOT EXISTS (SELECT FROM waits)
                AND NOT EXISTS (SELECT FROM k WHERE k.kind IN ('lock', 'step') AND k.status = 'waiting')
                THEN s.waiting_for
            WHEN s.waiting_for IS NULL AND NOT EXISTS (SELECT FROM w WHERE w.saga_id = s.saga_id)
                THEN 'a worker' END AS detail) y
        WHERE NOT s.final AND y.detail IS NOT NULL
        UNION ALL
        SELECT 7, x.line, x.n, 'waits for', x.detail FROM waits x WHERE x.n <= 3
        UNION ALL
        SELECT 7, x.line, 4, 'waits for',
               format('%s more elements of %s', count(*) - 3, min(x.step))
        FROM waits x GROUP BY x.line HAVING count(*) > 3
        UNION ALL
        SELECT 7, 1, 0, 'waits for', format('lock %s%s, %s', k.lock, ' for ' || k.step, k.line)
        FROM s, k WHERE NOT s.final AND k.kind = 'lock' AND k.status = 'waiting'
        UNION ALL
        SELECT 7, 1, 1, 'waits for',
               format('a place in step %s: at most %s saga%s at once, %s', k.step, k.places,
                   CASE WHEN k.places <> 1 THEN 's' END, k.line)
        FROM s, k WHERE NOT s.final AND k.kind = 'step' AND k.status = 'waiting'
        UNION ALL
        SELECT 7, 2, w.pid, 'waits for',
               format('%s of %s, which process %s runs since %s', w.operation, w.step, w.pid, w.since)
        FROM s JOIN w ON w.saga_id = s.saga_id
        WHERE NOT s.final
          AND (s.waiting_for IS NULL OR s.waiting_for NOT IN ('saga.adopt()', 'start time', 'place'))
        UNION ALL
        SELECT DISTINCT 8, 0, 0, 'no worker', w.reason
        FROM s, w
        WHERE NOT s.final AND w.reason IS NOT NULL
          AND (w.role = s.owner OR w.role IS NULL)
          AND (w.database IS NULL OR w.database = current_database())
        UNION ALL
        SELECT 8, 1, 0, 'no worker', format('role "%s" does not exist', s.owner)
        FROM s
        WHERE NOT s.final AND NOT EXISTS
            (SELECT FROM pg_roles r WHERE r.rolname = s.owner)
        UNION ALL
        SELECT 9, 0, 0, 'to do',
               'saga.retry(), saga.skip() or saga.abandon() with this id and a reason'
        FROM s WHERE s.status = 'stuck'
    ) l
    ORDER BY l.n, l.m, l.o;
END
$$;
COMMENT ON FUNCTION saga.explain(bigint) IS
    'where a saga is, what it waits for, what went wrong, and what can be done';

------------------------------------------------------------------------------
-- Schedules
--
-- Named jobs of pg_cron, which keeps them in one database of the server.  It is
-- asked with the caller's rights, and shows each role its own jobs; a job is
-- known by its name and by the role as which it runs.  pg_cron need not be
-- there, so it is named in dynamic SQL only.
------------------------------------------------------------------------------

CREATE FUNCTION saga.cron_database() RETURNS text
LANGUAGE c STABLE PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_cron_database';
COMMENT ON FUNCTION saga.cron_database() IS
    'database in which pg_cron keeps its jobs; NULL if it is not loaded';

CREATE FUNCTION saga.job_name(what text, database name) RETURNS text
LANGUAGE sql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
    -- pg_cron cuts longer names off
    SELECT CASE WHEN database = saga.cron_database() THEN 'saga ' || what
                WHEN octet_length(n.name) <= 63 THEN n.name
                ELSE format('saga %s of database %s', what,
                            (SELECT d.oid FROM pg_database d WHERE d.datname = database)) END
    FROM (SELECT format('saga %s of %I', what, database)) AS n(name)
$$;
COMMENT ON FUNCTION saga.job_name(text, name) IS
    'name of pg_cron''s job for a database';

CREATE FUNCTION saga.forget_runs_command() RETURNS text
LANGUAGE sql IMMUTABLE
AS $$
    -- by number and not by age: what could not be started has no time
    SELECT 'DELETE FROM cron.job_run_details WHERE runid IN (SELECT r.runid FROM'
        ' (SELECT d.runid, row_number() OVER (PARTITION BY d.jobid ORDER BY d.runid DESC) AS n'
        ' FROM cron.job_run_details d JOIN cron.job j ON j.jobid = d.jobid'
        ' WHERE j.jobname ~ ''^saga (recovery|retention|reconciliation|run history)( of |$)'') r'
        ' WHERE r.n > 1000)'
$$;
COMMENT ON FUNCTION saga.forget_runs_command() IS
    'what deletes all but the last 1000 runs of each of saga''s jobs from cron.job_run_details';

CREATE FUNCTION saga.check_cron(elsewhere text, otherwise text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF saga.cron_database() IS NULL THEN
        RAISE EXCEPTION 'pg_cron is not loaded via "shared_preload_libraries"'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'Schedules are jobs of the extension pg_cron.',
                  HINT = format('Install pg_cron, add it to shared_preload_libraries, set cron.database_name = %L, restart the server, and CREATE EXTENSION pg_cron.%s',
                                current_database(), otherwise);
    ELSIF saga.cron_database() <> current_database() THEN
        RAISE EXCEPTION 'pg_cron is not in database "%"', current_database()
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = format('It keeps its jobs in database "%s", for all databases.', saga.cron_database()),
                  HINT = format('In database "%s", as a superuser: %s', saga.cron_database(), elsewhere);
    ELSIF NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_cron') THEN
        RAISE EXCEPTION 'extension "pg_cron" does not exist'
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  HINT = 'As a superuser: CREATE EXTENSION pg_cron;';
    ELSIF NOT has_schema_privilege('cron', 'USAGE') THEN
        RAISE EXCEPTION 'permission denied for schema cron'
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('As a superuser: GRANT USAGE ON SCHEMA cron TO %I;', current_user);
    END IF;
END
$$;
COMMENT ON FUNCTION saga.check_cron(text, text) IS
    'raise an error if pg_cron cannot be asked from here; the texts are for its hints: what to do in the other database, and without pg_cron';

CREATE FUNCTION saga.check_job_role(runs_as name, target name, command text) RETURNS void
LANGUAGE plpgsql STABLE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    procedure constant text := substring(command FROM '^CALL saga\.(\w+)');
BEGIN
    IF NOT EXISTS (SELECT FROM pg_database d WHERE d.datname = target) THEN
        RAISE EXCEPTION 'database "%" does not exist', target
            USING ERRCODE = 'invalid_catalog_name';
    ELSIF NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = runs_as) THEN
        RAISE EXCEPTION 'role "%" does not exist', runs_as
            USING ERRCODE = 'undefined_object';
    ELSIF runs_as <> current_user
          AND NOT (SELECT r.rolsuper FROM pg_roles r WHERE r.rolname = current_user) THEN
        RAISE EXCEPTION 'must be superuser to schedule a job of role "%"', runs_as
            USING ERRCODE = 'insufficient_privilege';
    ELSIF NOT (SELECT r.rolcanlogin FROM pg_roles r WHERE r.rolname = runs_as) THEN
        RAISE EXCEPTION 'role "%" is not permitted to log in', runs_as
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'pg_cron runs a job in a session of its role.',
                  HINT = format('ALTER ROLE %I LOGIN;', runs_as);
    ELSIF NOT has_database_privilege(runs_as, target, 'CONNECT') THEN
        RAISE EXCEPTION 'role "%" has no CONNECT privilege on database "%"', runs_as, target
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT CONNECT ON DATABASE %I TO %I;', target, runs_as);
    ELSIF target = current_database()
          AND (NOT has_schema_privilege(runs_as, 'saga', 'USAGE')
               OR EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                          WHERE n.nspname = 'saga' AND p.proname = procedure
                            AND NOT has_function_privilege(runs_as, p.oid, 'EXECUTE'))) THEN
        RAISE EXCEPTION 'role "%" may not call procedure saga.%', runs_as, procedure
            USING ERRCODE = 'insufficient_privilege',
                  HINT = format('GRANT EXECUTE ON ROUTINE saga.%I TO %I; or see saga.grant_usage() and saga.grant_operator().',
                                procedure, runs_as);
    END IF;
END
$$;
COMMENT ON FUNCTION saga.check_job_role(name, name, text) IS
    'raise an error if a job would fail each time that it runs, as far as can be told from here';

CREATE FUNCTION saga.schedule_raw(what text, schedule text, command text, database name, role name)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target constant name := COALESCE(database, current_database());
    runs_as constant name := COALESCE(role, current_user);
    job constant text := saga.job_name(what, target);
    old bigint;
    good boolean;
    new bigint;
BEGIN
    IF schedule IS NULL THEN
        RAISE EXCEPTION 'schedule must not be null' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    PERFORM saga.check_job_role(runs_as, target, command);
    PERFORM saga.check_cron(
        format('SELECT cron.schedule_in_database(%L, %L, %L, %L, %L), cron.schedule(''saga run history'', ''17 * * * *'', %L);',
               job, schedule, command, target, runs_as, saga.forget_runs_command()),
        format(' Or have another scheduler connect to this database as role "%s" and execute: %s;',
               runs_as, command));

    -- pg_cron changes the schedule and the command of a job of that name, and no more
    EXECUTE 'SELECT j.jobid, j.active AND j.database = $3 AND j.nodeport = $4'
            ' FROM cron.job j WHERE j.jobname = $1 AND j.username = $2'
        INTO old, good USING job, runs_as::text, target::text, current_setting('port')::integer;
    IF NOT good THEN
        PERFORM saga.unschedule_raw(old);
    END IF;
    IF target = current_database() AND runs_as = current_user THEN
        EXECUTE 'SELECT cron.schedule($1, $2, $3)' INTO new USING job, schedule, command;
    ELSE
        IF NOT EXISTS (SELECT FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
                       WHERE n.nspname = 'cron' AND p.proname = 'schedule_in_database'
                         AND has_function_privilege(p.oid, 'EXECUTE')) THEN
            RAISE EXCEPTION 'permission denied for function cron.schedule_in_database'
                USING ERRCODE = 'insufficient_privilege',
                      HINT = format('A superuser can schedule it for this role: add role => %L.', runs_as);
        END IF;
        EXECUTE 'SELECT cron.schedule_in_database($1, $2, $3, $4, $5)' INTO new
            USING job, schedule, command, target::text, NULLIF(runs_as, current_user)::text;
    END IF;

    -- a second job keeps the records of all of them few
    EXECUTE 'SELECT j.command = $3 FROM cron.job j WHERE j.jobname = $1 AND j.username = $2'
        INTO good USING 'saga run history', current_user::text, saga.forget_runs_command();
    IF good IS NOT TRUE THEN
        EXECUTE 'SELECT cron.schedule($1, $2, $3)'
            USING 'saga run history', '17 * * * *', saga.forget_runs_command();
    END IF;
    RETURN new;
END
$$;
COMMENT ON FUNCTION saga.schedule_raw(text, text, text, name, name) IS
    'have pg_cron execute this command regularly, under the name that belongs to "what"; returns the number of its job';

CREATE FUNCTION saga.unschedule_raw(job_id bigint) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE 'SELECT cron.unschedule($1)' USING job_id;
    EXECUTE 'DELETE FROM cron.job_run_details d WHERE d.jobid = $1' USING job_id;
END
$$;
COMMENT ON FUNCTION saga.unschedule_raw(bigint) IS
    'remove a job of pg_cron and the records of its runs';

CREATE FUNCTION saga.schedules_raw(
    OUT job_id bigint, OUT what text, OUT database text, OUT role text, OUT schedule text,
    OUT command text, OUT active boolean, OUT last_status text, OUT last_start timestamptz,
    OUT last_end timestamptz, OUT last_message text)
RETURNS SETOF record
LANGUAGE plpgsql STABLE ROWS 5
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_extension e JOIN pg_namespace n ON n.nspname = 'cron'
                   WHERE e.extname = 'pg_cron' AND has_schema_privilege(n.oid, 'USAGE')) THEN
        RETURN;
    END IF;
    RETURN QUERY EXECUTE
        'SELECT j.jobid, substring(j.jobname::text FROM ''^saga (run history|\w+)''), j.database,'
        ' j.username, j.schedule, j.command, j.active, d.status, d.start_time, d.end_time, d.return_message'
        ' FROM cron.job j LEFT JOIN LATERAL'
        '  (SELECT * FROM cron.job_run_details d WHERE d.jobid = j.jobid'
        '   ORDER BY d.runid DESC LIMIT 1) d ON true'
        ' WHERE j.jobname ~ ''^saga (recovery|retention|reconciliation|run history)( of |$)''';
END
$$;
COMMENT ON FUNCTION saga.schedules_raw() IS
    'for view saga.schedules';

CREATE VIEW saga.schedules AS SELECT * FROM saga.schedules_raw();
COMMENT ON VIEW saga.schedules IS
    'jobs of pg_cron that were made by saga.schedule_recovery() and the like, of all databases, with their last runs. To be asked in pg_cron''s database, elsewhere it is empty; a role sees those that run as itself, a superuser all';
COMMENT ON COLUMN saga.schedules.job_id IS 'number of the job, as in cron.job';
COMMENT ON COLUMN saga.schedules.what IS 'recovery, retention, reconciliation, or run history: the job that deletes old runs of the others';
COMMENT ON COLUMN saga.schedules.database IS 'where it runs';
COMMENT ON COLUMN saga.schedules.role IS 'as which it runs';
COMMENT ON COLUMN saga.schedules.schedule IS 'when it runs, in the form and the time zone of pg_cron (GMT unless it says otherwise)';
COMMENT ON COLUMN saga.schedules.command IS 'what it executes';
COMMENT ON COLUMN saga.schedules.active IS 'false if somebody has switched it off with cron.alter_job()';
COMMENT ON COLUMN saga.schedules.last_status IS 'of its last run: starting, connecting, sending, running, succeeded or failed; NULL: none yet';
COMMENT ON COLUMN saga.schedules.last_start IS 'when that began; NULL if it could not be started';
COMMENT ON COLUMN saga.schedules.last_end IS 'when it ended';
COMMENT ON COLUMN saga.schedules.last_message IS 'what the server said last: a command tag, or the error';

CREATE FUNCTION saga.schedule_recovery(
    schedule text DEFAULT '* * * * *', max bigint DEFAULT 1000, time_budget interval DEFAULT '50 s',
    database name DEFAULT NULL, role name DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres
AS $$
BEGIN
    IF max IS NULL OR time_budget IS NULL THEN
        RAISE EXCEPTION 'max and time_budget must not be null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF max < 1 THEN
        RAISE EXCEPTION 'max must be greater than zero' USING ERRCODE = 'invalid_parameter_value';
    ELSIF time_budget < '0' THEN
        RAISE EXCEPTION 'time_budget must not be negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN saga.schedule_raw('recovery', schedule,
        format('CALL saga.recover(max => %s, time_budget => %L)', max, time_budget), database, role);
END
$$;
COMMENT ON FUNCTION saga.schedule_recovery(text, bigint, interval, name, name) IS
    'have pg_cron CALL saga.recover() regularly, in this database or another one, as the caller or, for superusers, as another role; returns the number of the job. Called again it changes that job';

CREATE FUNCTION saga.schedule_retention(
    schedule text DEFAULT '0 3 * * *', time_budget interval DEFAULT '10 min',
    database name DEFAULT NULL, role name DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp SET intervalstyle = postgres
AS $$
BEGIN
    IF time_budget IS NULL THEN
        RAISE EXCEPTION 'time_budget must not be null' USING ERRCODE = 'null_value_not_allowed';
    ELSIF time_budget < '0' THEN
        RAISE EXCEPTION 'time_budget must not be negative' USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN saga.schedule_raw('retention', schedule,
        format('CALL saga.retain(time_budget => %L)', time_budget), database, role);
END
$$;
COMMENT ON FUNCTION saga.schedule_retention(text, interval, name, name) IS
    'have pg_cron CALL saga.retain() regularly; otherwise as saga.schedule_recovery()';

CREATE FUNCTION saga.schedule_reconciliation(
    schedule text DEFAULT '*/10 * * * *', database name DEFAULT NULL, role name DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    RETURN saga.schedule_raw('reconciliation', schedule, 'CALL saga.check_invariants()', database, role);
END
$$;
COMMENT ON FUNCTION saga.schedule_reconciliation(text, name, name) IS
    'have pg_cron CALL saga.check_invariants() regularly; otherwise as saga.schedule_recovery()';

CREATE FUNCTION saga.unschedule(what text DEFAULT NULL, database name DEFAULT NULL, role name DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    target constant name := COALESCE(database, current_database());
    pattern constant text := format('^saga %s( of |$)', COALESCE(what, '(recovery|retention|reconciliation)'));
    job bigint;
    n bigint := 0;
BEGIN
    IF what NOT IN ('recovery', 'retention', 'reconciliation') THEN
        RAISE EXCEPTION 'unrecognized kind of schedule: "%"', what
            USING ERRCODE = 'invalid_parameter_value',
                  HINT = 'Valid values are "recovery", "retention" and "reconciliation".';
    END IF;
    IF saga.cron_database() IS NULL
       OR saga.cron_database() = current_database()
          AND NOT EXISTS (SELECT FROM pg_extension e WHERE e.extname = 'pg_cron') THEN
        RETURN 0;
    END IF;
    PERFORM saga.check_cron(
        format('SELECT cron.unschedule(jobid) FROM cron.job WHERE jobname ~ %L AND database = %L%s;',
               pattern, target, ' AND username = ' || quote_literal(role)),
        NULL);
    FOR job IN EXECUTE 'SELECT j.jobid FROM cron.job j WHERE j.jobname ~ $1 AND j.database = $2'
                       ' AND ($3 IS NULL OR j.username = $3)'
               USING pattern, target::text, role::text
    LOOP
        PERFORM saga.unschedule_raw(job);
        n := n + 1;
    END LOOP;
    -- a role that has none left keeps no records of them either
    FOR job IN EXECUTE 'SELECT h.jobid FROM cron.job h WHERE h.jobname = ''saga run history'''
                       ' AND NOT EXISTS (SELECT FROM cron.job j'
                       '  WHERE j.jobname ~ ''^saga (recovery|retention|reconciliation)( of |$)'''
                       '  AND (j.username = h.username OR EXISTS (SELECT FROM pg_catalog.pg_roles r'
                       '       WHERE r.rolname = h.username AND r.rolsuper)))'
    LOOP
        PERFORM saga.unschedule_raw(job);
    END LOOP;
    RETURN n;
END
$$;
COMMENT ON FUNCTION saga.unschedule(text, name, name) IS
    'remove the jobs for this database, or another one, from pg_cron: recovery, retention, reconciliation, or all; those of a role, or all that the caller may see. Returns how many; none is no error';

------------------------------------------------------------------------------
-- Pictures
--
-- saga.diagram(), saga.timeline() and saga.report() run as their caller and read
-- the views: they show what the caller may see, and nothing that a step was
-- given or has returned.  saga.picture() gathers what is to be drawn, in the
-- same form for a definition and for a saga; others write that as Mermaid, DOT
-- or SVG.  What is a user's text goes through saga.escape(), always, and right
-- where it is written.
------------------------------------------------------------------------------

CREATE FUNCTION saga.escape(text text, form text) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_escape';
COMMENT ON FUNCTION saga.escape(text, text) IS
    'for pictures: a text as html (text, or an attribute in quotes; ASCII only), as a label in quotes of mermaid or dot, or plain, for a terminal. It is read there as this text and nothing else; characters that are not seen are written as <U+202E>';

CREATE FUNCTION saga.time_text(seconds double precision) RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'saga_time_text';
COMMENT ON FUNCTION saga.time_text(double precision) IS
    'for pictures: how long something took, for people';

CREATE FUNCTION saga.picture(definition text, version integer) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
SET search_path = pg_catalog, pg_temp SET jit = off
SET datestyle = iso SET intervalstyle = postgres
AS $$
#variable_conflict use_column
DECLARE
    v constant integer := COALESCE($2,
        (SELECT max(d.version) FROM saga.definition_steps d WHERE d.definition = $1));
    picture jsonb;
BEGIN
    IF $1 IS NULL THEN
        RETURN NULL;
    END IF;
    WITH d AS MATERIALIZED (
        SELECT * FROM saga.definition_steps x WHERE x.definition = $1 AND x.version = v
    ), a AS (
        SELECT x.position, jsonb_agg(p.position ORDER BY p.position) AS after
        FROM d x CROSS JOIN LATERAL unnest(x.after) n(step) JOIN d p ON p.step = n.step
        GROUP BY x.position
    )
    SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'name', d.step, 'kind', d.kind,
               'after', COALESCE(a.after, '[]'),
               'action', d.action, 'compensation', d.compensation,
               'confirmation', d.confirmation, 'only_if', d.only_if,
               'foreach', d.foreach, 'quorum', d.quorum,
               'pivot', NULLIF(d.pivot, false),
               'recoveries', d.recoveries,
               'alternative', t.position,
               'exclusive', d.exclusive, 'concurrency', d.concurrency, 'wait', d.wait,
               'child', d.child, 'queue', d.queue, 'server', d.server)) ORDER BY d.position)
    INTO picture FROM d
    LEFT JOIN a ON a.position = d.position
    LEFT JOIN d t ON t.step = d.and_then AND d.savepoint;
    IF picture IS NULL AND $2 IS NOT NULL
       AND EXISTS (SELECT FROM saga.definitions d WHERE d.name = $1) THEN
        RAISE EXCEPTION 'version % of saga definition "%" does not exist', $2, $1
            USING ERRCODE = 'undefined_object';
    ELSIF picture IS NULL THEN
        RAISE EXCEPTION 'saga definition "%" does not exist', $1
            USING ERRCODE = 'undefined_object',
                  HINT = 'View saga.definitions has those that you may see.';
    END IF;
    RETURN jsonb_build_object('definition', $1, 'version', v, 'steps', picture);
END
$$;
COMMENT ON FUNCTION saga.picture(text, integer) IS
    'what saga.diagram() draws of a definition: its steps, which name each other by position';

CREATE FUNCTION saga.picture(saga_id bigint) RETURNS jsonb
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
SET datestyle = iso SET intervalstyle = postgres
AS $$
#variable_conflict use_column
DECLARE
    picture jsonb;
    steps   jsonb;
BEGIN
    IF $1 IS NULL THEN
        RETURN NULL;
    END IF;
    SELECT jsonb_strip_nulls(jsonb_build_object('saga_id', s.saga_id, 'key', s.key,
               'definition', s.definition, 'version', s.version, 'status', s.status))
    INTO picture FROM saga.sagas s WHERE s.saga_id = $1;
    IF picture IS NULL THEN
        RAISE EXCEPTION 'saga % does not exist', $1
            USING ERRCODE = 'undefined_object',
                  HINT = 'View saga.sagas has those that you may see.';
    END IF;
    WITH r AS MATERIALIZED (
        SELECT * FROM saga.explain_raw($1)
    ), w AS MATERIALIZED (
        -- what a process has just now is not written yet
        SELECT x.step, x.operation FROM saga.workers x
        WHERE x.saga_id = $1 AND x.step IS NOT NULL
          AND x.database = current_database()
    ), t AS MATERIALIZED (
        SELECT x.position, x.step, x.operation, x.round, x.element, x.attempts, x.child_id,
               CASE WHEN x.status IN ('pending', 'waiting')
                         AND EXISTS (SELECT FROM w WHERE w.step = x.step AND w.operation = x.operation)
                    THEN 'running' ELSE x.status END AS status
        FROM saga.steps x WHERE x.saga_id = $1
        UNION ALL
        SELECT x.position, x.step, w.operation, x.round, NULL, 0, NULL, 'running'
        FROM w JOIN (SELECT DISTINCT y.position, y.step, r.round FROM saga.steps y
                     JOIN r ON r.position = y.position WHERE y.saga_id = $1) x ON x.step = w.step
        WHERE w.operation <> 'action'
          AND NOT EXISTS (SELECT FROM saga.steps y WHERE y.saga_id = $1
                            AND y.step = w.step AND y.operation = w.operation)
    ), n AS MATERIALIZED (
        SELECT DISTINCT t.position, t.step FROM t
    ), b AS (
        SELECT x.position, jsonb_agg(p.position ORDER BY p.position) AS after
        FROM r x CROSS JOIN LATERAL unnest(x.after) a(step) JOIN n p ON p.step = a.step
        GROUP BY x.position
    ), o AS (
        SELECT t.position, t.operation,
               CASE WHEN bool_or(t.status = 'running') THEN 'running'
                    WHEN bool_or(t.status = 'waiting') THEN 'waiting'
                    WHEN bool_or(t.status = 'failed')
                         AND count(*) FILTER (WHERE t.status = 'succeeded') < COALESCE(min(r.quorum), 2147483647)
                         THEN 'failed'
                    WHEN bool_or(t.status = 'pending') AND bool_or(t.status <> 'pending') THEN 'running'
                    WHEN bool_or(t.status = 'pending') THEN 'pending'
                    WHEN bool_or(t.status = 'succeeded') THEN 'succeeded'
                    ELSE 'skipped' END AS state,
               count(t.element) AS rows,
               count(t.element) FILTER (WHERE t.status = 'succeeded') AS succeeded,
               max(t.attempts) AS attempts,
               (array_agg(t.child_id ORDER BY t.element) FILTER (WHERE t.child_id IS NOT NULL))[1:6] AS children,
               count(t.child_id) AS child_count
        FROM t JOIN r ON r.position = t.position AND t.round = r.round
        GROUP BY t.position, t.operation
    )
    SELECT jsonb_agg(jsonb_strip_nulls(jsonb_build_object(
               'name', n.step, 'kind', r.kind,
               'after', CASE WHEN b.after IS NOT NULL THEN b.after
                   WHEN r.after IS NULL AND r.position > 1 THEN jsonb_build_array(r.position - 1) ELSE '[]' END,
               'action', r.action, 'compensation', r.compensation,
               'confirmation', r.confirmation, 'only_if', r.only_if,
               'foreach', r.foreach, 'quorum', r.quorum, 'elements', COALESCE(r.elements, NULLIF(a.rows, 0)),
               'succeeded', CASE WHEN r.foreach IS NOT NULL THEN a.succeeded END,
               'pivot', NULLIF(r.pivot, false),
               'recoveries', r.recoveries, 'recovered', r.recovered,
               'alternative', g.position,
               'exclusive', r.exclusive,
               'child', r.child, 'queue', r.queue, 'server', r.server,
               'state', COALESCE(a.state, 'pending'), 'attempts', a.attempts,
               'compensation_state', c.state, 'compensation_attempts', c.attempts,
               'confirmation_state', f.state,
               'children', (SELECT jsonb_agg(jsonb_build_object(
                                'saga_id', x.saga_id, 'definition', x.definition, 'status', x.status)
                                ORDER BY x.saga_id)
                            FROM saga.sagas x WHERE x.saga_id = ANY (a.children[1:5])),
               'child_count', NULLIF(a.child_count, 0))) ORDER BY r.position)
    INTO steps
    FROM r JOIN n ON n.position = r.position
    LEFT JOIN b ON b.position = r.position
    LEFT JOIN n g ON g.step = r.and_then
    LEFT JOIN o a ON a.position = r.position AND a.operation = 'action'
    LEFT JOIN o c ON c.position = r.position AND c.operation = 'compensation'
    LEFT JOIN o f ON f.position = r.position AND f.operation = 'confirmation';
    -- "still": what a compensation is that was not attempted
    RETURN picture || jsonb_build_object('steps', COALESCE(steps, '[]'), 'still',
        CASE WHEN picture ->> 'status' IN ('completed', 'compensated', 'abandoned')
             THEN 'skipped' ELSE 'pending' END);
END
$$;
COMMENT ON FUNCTION saga.picture(bigint) IS
    'what saga.diagram() draws of a saga: the steps of its version, and what has become of each';

CREATE FUNCTION saga.picture_function(signature text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT regexp_replace($1, '\((?:[^"()]|"(?:[^"]|"")*")*\)$', '')
$$;
COMMENT ON FUNCTION saga.picture_function(text) IS
    'for pictures: a function without the types of its arguments';

CREATE FUNCTION saga.picture_lines(step jsonb) RETURNS text[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT array_remove(ARRAY[
        CASE $1 ->> 'kind'
            WHEN 'local' THEN saga.picture_function($1 ->> 'action')
            WHEN 'timer' THEN 'timer' || COALESCE(', ' || ($1 ->> 'wait'),
                                                  ', until ' || saga.picture_function($1 ->> 'action'), '')
            WHEN 'signal' THEN 'signal' || COALESCE(', for ' || ($1 ->> 'wait'), '')
            WHEN 'child' THEN 'saga of ' || ($1 ->> 'child') || COALESCE(' at ' || ($1 ->> 'server'), '')
            WHEN 'external' THEN ($1 ->> 'action') || ' by queue ' || ($1 ->> 'queue')
            WHEN 'remote' THEN ($1 ->> 'action') || ' at ' || ($1 ->> 'server') END,
        'for each of ' || ($1 ->> 'foreach')
            || COALESCE(', quorum ' || ($1 ->> 'quorum'), '')
            || COALESCE(': ' || ($1 ->> 'succeeded') || ' of ' || ($1 ->> 'elements') || ' done', ''),
        CASE WHEN ($1 ->> 'pivot')::boolean THEN 'pivot' END,
        CASE WHEN $1 ? 'recovered' THEN format('savepoint, %s of %s', $1 ->> 'recovered', $1 ->> 'recoveries')
             WHEN $1 ? 'recoveries' THEN 'savepoint, up to ' || ($1 ->> 'recoveries')
                  || CASE $1 ->> 'recoveries' WHEN '1' THEN ' time' ELSE ' times' END END,
        'takes turns by ' || ($1 ->> 'exclusive'),
        'at most ' || ($1 ->> 'concurrency') || ' at once',
        'confirmed by ' || saga.picture_function($1 ->> 'confirmation')
            || COALESCE(': ' || ($1 ->> 'confirmation_state'), ''),
        ($1 ->> 'state') || CASE WHEN ($1 ->> 'attempts')::integer > 1
                                 THEN ', ' || ($1 ->> 'attempts') || ' attempts' ELSE '' END
    ], NULL)
$$;
COMMENT ON FUNCTION saga.picture_lines(jsonb) IS
    'for pictures: what a box says of a step, beside its name';

CREATE FUNCTION saga.picture_edges(picture jsonb,
    OUT source integer, OUT target integer, OUT only_if text, OUT alternative boolean)
RETURNS SETOF record
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH s AS MATERIALIZED (
        SELECT e.n::integer AS n, e.step
        FROM jsonb_array_elements($1 -> 'steps') WITH ORDINALITY e(step, n)
    ), a AS MATERIALIZED (
        SELECT s.n AS source, (s.step ->> 'alternative')::integer AS target
        FROM s WHERE s.step ? 'alternative'
    )
    SELECT p.n::integer, s.n, saga.picture_function(s.step ->> 'only_if'), a.target IS NOT NULL
    FROM s CROSS JOIN LATERAL jsonb_array_elements_text(s.step -> 'after') p(n)
    LEFT JOIN a ON a.source = p.n::integer AND a.target = s.n
    UNION ALL
    -- 0: the beginning
    SELECT 0, s.n, saga.picture_function(s.step ->> 'only_if'), false
    FROM s WHERE s.step -> 'after' = '[]'
    UNION ALL
    SELECT a.source, a.target, NULL, true FROM a
    WHERE NOT EXISTS (SELECT FROM s WHERE s.n = a.target AND s.step -> 'after' @> to_jsonb(a.source))
    ORDER BY 1, 2
$$;
COMMENT ON FUNCTION saga.picture_edges(jsonb) IS
    'for pictures: which step leads to which; "alternative": only after going back to the first';

CREATE FUNCTION saga.picture_class(step jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN $1 ->> 'compensation_state' = 'succeeded' THEN 'compensated'
                ELSE COALESCE($1 ->> 'state', 'step') END
$$;
COMMENT ON FUNCTION saga.picture_class(jsonb) IS 'for pictures: by what a step is coloured';

CREATE FUNCTION saga.picture_status_class(status text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE $1 WHEN 'completed' THEN 'succeeded' WHEN 'compensated' THEN 'compensated'
        WHEN 'abandoned' THEN 'skipped' WHEN 'stuck' THEN 'failed'
        WHEN 'running' THEN 'running' WHEN 'compensating' THEN 'running' ELSE 'waiting' END
$$;
COMMENT ON FUNCTION saga.picture_status_class(text) IS 'for pictures: by what a saga is coloured';

CREATE FUNCTION saga.picture_title(picture jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT concat('saga ' || ($1 ->> 'saga_id') || ' of ', COALESCE($1 ->> 'definition', 'an unknown definition'),
                  ' version ' || ($1 ->> 'version'),
                  ', key ' || CASE WHEN length($1 ->> 'key') > 60 THEN left($1 ->> 'key', 57) || '...'
                                   ELSE $1 ->> 'key' END)
$$;
COMMENT ON FUNCTION saga.picture_title(jsonb) IS 'for pictures: what it is a picture of';

CREATE FUNCTION saga.picture_mermaid(picture jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH s AS MATERIALIZED (
        SELECT e.n::integer AS n, e.step
        FROM jsonb_array_elements($1 -> 'steps') WITH ORDINALITY e(step, n)
    ), c AS MATERIALIZED (
        SELECT s.n, c.n AS m, c.child
        FROM s CROSS JOIN LATERAL jsonb_array_elements(s.step -> 'children') WITH ORDINALITY c(child, n)
    ), e AS MATERIALIZED (
        SELECT * FROM saga.picture_edges($1)
    ), l AS (
        SELECT 1 AS part, 0 AS n, 0 AS m,
               format('    begin(["%s"]):::ends', saga.escape(saga.picture_title($1), 'mermaid')) AS line
        UNION ALL
        SELECT 2, s.n, 0, format('    s%s%s"%s"%s:::%s', s.n,
            CASE s.step ->> 'kind' WHEN 'timer' THEN '{{' WHEN 'signal' THEN '>' WHEN 'child' THEN '[['
                 WHEN 'external' THEN '[/' WHEN 'remote' THEN '[(' ELSE '[' END,
            (SELECT string_agg(saga.escape(x.line, 'mermaid'), '<br/>' ORDER BY x.n)
             FROM unnest((s.step ->> 'name') || saga.picture_lines(s.step)) WITH ORDINALITY x(line, n)),
            CASE s.step ->> 'kind' WHEN 'timer' THEN '}}' WHEN 'signal' THEN ']' WHEN 'child' THEN ']]'
                 WHEN 'external' THEN '/]' WHEN 'remote' THEN ')]' ELSE ']' END,
            saga.picture_class(s.step))
        FROM s
        UNION ALL
        SELECT 3, s.n, 0, format('    c%s(["compensation<br/>%s%s"]):::%s', s.n,
            saga.escape(saga.picture_function(s.step ->> 'compensation'), 'mermaid'),
            COALESCE('<br/>' || (s.step ->> 'compensation_state'), ''),
            CASE WHEN s.step ->> 'compensation_state' = 'succeeded' THEN 'compensated'
                 ELSE COALESCE(s.step ->> 'compensation_state', $1 ->> 'still', 'step') END)
        FROM s WHERE s.step ? 'compensation'
        UNION ALL
        SELECT 4, c.n, c.m::integer, format('    k%s_%s[["saga %s of %s<br/>%s"]]:::%s', c.n, c.m, c.child ->> 'saga_id',
            saga.escape(COALESCE(c.child ->> 'definition', '?'), 'mermaid'), c.child ->> 'status',
            saga.picture_status_class(c.child ->> 'status'))
        FROM c
        UNION ALL
        SELECT 4, s.n, 99, format('    k%s_0[["and %s more"]]:::ends', s.n,
            (s.step ->> 'child_count')::bigint - jsonb_array_length(s.step -> 'children'))
        FROM s WHERE (s.step ->> 'child_count')::bigint > jsonb_array_length(s.step -> 'children')
        UNION ALL
        SELECT 5, 0, 0, format('    finish(["%s"]):::%s', COALESCE($1 ->> 'status', 'end'),
            COALESCE(saga.picture_status_class($1 ->> 'status'), 'ends'))
        UNION ALL
        SELECT 6, e.source, e.target, format('    %s %s%s %s',
            COALESCE('s' || NULLIF(e.source, 0), 'begin'),
            CASE WHEN e.alternative THEN '-.->' ELSE '-->' END,
            CASE WHEN e.alternative THEN '|"after going back"|'
                 ELSE COALESCE('|"if ' || saga.escape(e.only_if, 'mermaid') || '"|', '') END,
            's' || e.target)
        FROM e
        UNION ALL
        SELECT 7, s.n, 0, format('    s%s --> finish', s.n)
        FROM s WHERE NOT EXISTS (SELECT FROM e WHERE e.source = s.n)
        UNION ALL
        SELECT 8, s.n, 0, format('    s%s -.- c%s', s.n, s.n) FROM s WHERE s.step ? 'compensation'
        UNION ALL
        SELECT 9, c.n, c.m::integer, format('    s%s -.- k%s_%s', c.n, c.n, c.m) FROM c
        UNION ALL
        SELECT 9, s.n, 99, format('    s%s -.- k%s_0', s.n, s.n)
        FROM s WHERE (s.step ->> 'child_count')::bigint > jsonb_array_length(s.step -> 'children')
        UNION ALL
        SELECT 10, s.n, 0, format('    style s%s stroke-width:4px', s.n)
        FROM s WHERE (s.step ->> 'pivot')::boolean
    )
    SELECT E'flowchart TD\n' || string_agg(l.line, E'\n' ORDER BY l.part, l.n, l.m) || E'\n'
        || E'    classDef ends fill:#ffffff,stroke:#57606a,color:#24292f\n'
        || E'    classDef step fill:#f6f8fa,stroke:#57606a,color:#24292f\n'
        || CASE WHEN $1 ? 'saga_id' THEN
           E'    classDef pending fill:#ffffff,stroke:#8c959f,color:#24292f\n'
        || E'    classDef running fill:#dbeaff,stroke:#0969da,color:#0a2f5c\n'
        || E'    classDef waiting fill:#fff2cc,stroke:#9a6700,color:#4d3300\n'
        || E'    classDef succeeded fill:#d7f0dd,stroke:#1a7f37,color:#0b3d1a\n'
        || E'    classDef failed fill:#ffdce0,stroke:#cf222e,color:#5c0a12\n'
        || E'    classDef skipped fill:#eceff2,stroke:#8c959f,color:#57606a,stroke-dasharray:4 3\n'
        || E'    classDef compensated fill:#eadcff,stroke:#8250df,color:#3b1d6e\n'
        ELSE '' END
    FROM l
$$;
COMMENT ON FUNCTION saga.picture_mermaid(jsonb) IS 'a picture as Mermaid';

CREATE FUNCTION saga.picture_colours(class text) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('style="%s", fillcolor="%s", color="%s", fontcolor="%s"',
        CASE $1 WHEN 'skipped' THEN 'rounded,filled,dashed' ELSE 'rounded,filled' END, c.fill, c.line, c.text)
    FROM (VALUES ('ends', '#ffffff', '#57606a', '#24292f'),
                 ('step', '#f6f8fa', '#57606a', '#24292f'),
                 ('pending', '#ffffff', '#8c959f', '#24292f'),
                 ('running', '#dbeaff', '#0969da', '#0a2f5c'),
                 ('waiting', '#fff2cc', '#9a6700', '#4d3300'),
                 ('succeeded', '#d7f0dd', '#1a7f37', '#0b3d1a'),
                 ('failed', '#ffdce0', '#cf222e', '#5c0a12'),
                 ('skipped', '#eceff2', '#8c959f', '#57606a'),
                 ('compensated', '#eadcff', '#8250df', '#3b1d6e')) c(class, fill, line, text)
    WHERE c.class = $1
$$;
COMMENT ON FUNCTION saga.picture_colours(text) IS 'for pictures: the colours of a class of boxes in DOT';

CREATE FUNCTION saga.picture_dot(picture jsonb) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    WITH s AS MATERIALIZED (
        SELECT e.n::integer AS n, e.step
        FROM jsonb_array_elements($1 -> 'steps') WITH ORDINALITY e(step, n)
    ), c AS MATERIALIZED (
        SELECT s.n, c.n AS m, c.child
        FROM s CROSS JOIN LATERAL jsonb_array_elements(s.step -> 'children') WITH ORDINALITY c(child, n)
    ), e AS MATERIALIZED (
        SELECT * FROM saga.picture_edges($1)
    ), l AS (
        SELECT 1 AS part, 0 AS n, 0 AS m,
               format('    begin [label="%s", shape=box, %s];',
                   saga.escape(saga.picture_title($1), 'dot'), saga.picture_colours('ends')) AS line
        UNION ALL
        SELECT 2, s.n, 0, format('    s%s [label="%s", shape=%s, %s%s];', s.n,
            (SELECT string_agg(saga.escape(x.line, 'dot'), '\n' ORDER BY x.n)
             FROM unnest((s.step ->> 'name') || saga.picture_lines(s.step)) WITH ORDINALITY x(line, n)),
            CASE s.step ->> 'kind' WHEN 'timer' THEN 'hexagon' WHEN 'signal' THEN 'cds' WHEN 'child' THEN 'box3d'
                 WHEN 'external' THEN 'parallelogram' WHEN 'remote' THEN 'cylinder' ELSE 'box' END,
            saga.picture_colours(saga.picture_class(s.step)),
            CASE WHEN (s.step ->> 'pivot')::boolean THEN ', penwidth=4' ELSE '' END)
        FROM s
        UNION ALL
        SELECT 3, s.n, 0, format('    c%s [label="compensation\n%s%s", shape=box, %s];', s.n,
            saga.escape(saga.picture_function(s.step ->> 'compensation'), 'dot'),
            COALESCE('\n' || (s.step ->> 'compensation_state'), ''),
            saga.picture_colours(CASE WHEN s.step ->> 'compensation_state' = 'succeeded' THEN 'compensated'
                 ELSE COALESCE(s.step ->> 'compensation_state', $1 ->> 'still', 'step') END))
        FROM s WHERE s.step ? 'compensation'
        UNION ALL
        SELECT 4, c.n, c.m::integer, format('    k%s_%s [label="saga %s of %s\n%s", shape=box3d, %s];',
            c.n, c.m, c.child ->> 'saga_id', saga.escape(COALESCE(c.child ->> 'definition', '?'), 'dot'),
            c.child ->> 'status', saga.picture_colours(saga.picture_status_class(c.child ->> 'status')))
        FROM c
        UNION ALL
        SELECT 4, s.n, 99, format('    k%s_0 [label="and %s more", shape=box3d, %s];', s.n,
            (s.step ->> 'child_count')::bigint - jsonb_array_length(s.step -> 'children'),
            saga.picture_colours('ends'))
        FROM s WHERE (s.step ->> 'child_count')::bigint > jsonb_array_length(s.step -> 'children')
        UNION ALL
        SELECT 5, 0, 0, format('    finish [label="%s", shape=box, %s];', COALESCE($1 ->> 'status', 'end'),
            saga.picture_colours(COALESCE(saga.picture_status_class($1 ->> 'status'), 'ends')))
        UNION ALL
        SELECT 6, e.source, e.target, format('    %s -> s%s%s;',
            COALESCE('s' || NULLIF(e.source, 0), 'begin'), e.target,
            CASE WHEN e.alternative THEN ' [style=dashed, label="after going back"]'
                 ELSE COALESCE(' [label="if ' || saga.escape(e.only_if, 'dot') || '"]', '') END)
        FROM e
        UNION ALL
        SELECT 7, s.n, 0, format('    s%s -> finish;', s.n)
        FROM s WHERE NOT EXISTS (SELECT FROM e WHERE e.source = s.n)
        UNION ALL
        SELECT 8, s.n, 0, format('    { rank=same; s%s -> c%s [style=dotted, dir=none]; }', s.n, s.n)
        FROM s WHERE s.step ? 'compensation'
        UNION ALL
        SELECT 9, c.n, c.m::integer, format('    s%s -> k%s_%s [style=dotted, dir=none];', c.n, c.n, c.m)
        FROM c
        UNION ALL
        SELECT 9, s.n, 99, format('    s%s -> k%s_0 [style=dotted, dir=none];', s.n, s.n)
        FROM s WHERE (s.step ->> 'child_count')::bigint > jsonb_array_length(s.step -> 'children')
    )
    SELECT E'digraph saga {\n    node [fontname="Helvetica", fontsize=11];\n'
        || E'    edge [fontname="Helvetica", fontsize=10, color="#57606a", fontcolor="#57606a"];\n'
        || string_agg(l.line, E'\n' ORDER BY l.part, l.n, l.m) || E'\n}\n'
    FROM l
$$;
COMMENT ON FUNCTION saga.picture_dot(jsonb) IS 'a picture as DOT, for Graphviz';

CREATE FUNCTION saga.picture_write(picture jsonb, format text) RETURNS text
LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
BEGIN
    CASE format
        WHEN 'mermaid' THEN RETURN saga.picture_mermaid(picture);
        WHEN 'dot' THEN RETURN saga.picture_dot(picture);
        ELSE
            RAISE EXCEPTION 'unrecognized format of a diagram: "%"', COALESCE(format, 'null')
                USING ERRCODE = 'invalid_parameter_value',
                      HINT = 'The formats are "mermaid" and "dot".';
    END CASE;
END
$$;
COMMENT ON FUNCTION saga.picture_write(jsonb, text) IS 'a picture in one of the formats of saga.diagram()';

CREATE FUNCTION saga.diagram(definition text, format text DEFAULT 'mermaid', version integer DEFAULT NULL)
RETURNS text
LANGUAGE sql STABLE PARALLEL RESTRICTED
AS $$
    SELECT saga.picture_write(saga.picture($1, $3), $2)
$$;
COMMENT ON FUNCTION saga.diagram(text, text, integer) IS
    'a definition as a graph: its steps, what each comes after, and how it is compensated; as Mermaid or, with format => ''dot'', for Graphviz. The newest version, unless another one is given';

CREATE FUNCTION saga.diagram(saga_id bigint, format text DEFAULT 'mermaid')
RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE
AS $$
    SELECT saga.picture_write(saga.picture($1), $2)
$$;
COMMENT ON FUNCTION saga.diagram(bigint, text) IS
    'a saga as a graph, likewise, with the state of each step in colour, and its children';

CREATE FUNCTION saga.timeline_rows(saga_id bigint)
RETURNS TABLE (line integer, label text, step text, operation saga.operation, "position" integer,
    round integer, kind text, elements bigint, status text, attempts integer,
    started_at timestamptz, finished_at timestamptz, goes_on boolean,
    failed_from timestamptz[], failed_to timestamptz[], error text, detail text)
LANGUAGE plpgsql STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
SET datestyle = iso SET intervalstyle = postgres
AS $$
#variable_conflict use_column
BEGIN
    RETURN QUERY
    WITH r AS MATERIALIZED (
        SELECT x.position, x.kind, x.foreach FROM saga.explain_raw($1) x
    ), w AS MATERIALIZED (
        -- what a process has just now is not written yet
        SELECT x.step, x.operation, x.since FROM saga.workers x
        WHERE x.saga_id = $1 AND x.step IS NOT NULL
          AND x.database = current_database()
    ), t AS MATERIALIZED (
        SELECT x.position, x.step, x.operation, x.round, x.element, x.status, x.attempts,
               x.started_at, x.finished_at, x.next_attempt_at, x.error, x.child_id, x.unknown,
               x.waits_until, w.since
        FROM saga.steps x LEFT JOIN w ON w.step = x.step AND w.operation = x.operation
            AND x.status IN ('pending', 'waiting')
        WHERE x.saga_id = $1
    ), a AS (
        SELECT x.step, x.operation, x.round,
               (array_agg(x.started_at ORDER BY x.started_at))[1:200] AS failed_from,
               (array_agg(x.finished_at ORDER BY x.started_at))[1:200] AS failed_to
        FROM saga.attempts x WHERE x.saga_id = $1
        GROUP BY x.step, x.operation, x.round
    ), o AS (
        SELECT t.position, t.step, t.operation, t.round, min(r.kind) AS kind,
               count(t.element) AS elements,
               CASE WHEN bool_or(t.since IS NOT NULL OR t.status = 'running') THEN 'running'
                    WHEN bool_or(t.status = 'waiting') THEN 'waiting'
                    WHEN bool_or(t.status = 'failed') THEN 'failed'
                    WHEN bool_or(t.status = 'pending') AND bool_or(t.status <> 'pending') THEN 'running'
                    WHEN bool_or(t.status = 'pending') THEN 'pending'
                    WHEN bool_or(t.status = 'succeeded') THEN 'succeeded'
                    ELSE 'skipped' END AS status,
               max(t.attempts) AS attempts,
               LEAST(min(t.started_at), min(t.since)) AS started_at,
               max(t.finished_at) AS finished_at,
               (array_agg(t.error ORDER BY t.finished_at DESC) FILTER (WHERE t.error IS NOT NULL))[1] AS error,
               concat_ws(', ',
                   count(t.element) FILTER (WHERE t.status = 'succeeded')
                       || ' of ' || NULLIF(count(t.element), 0) || ' done',
                   'saga ' || CASE WHEN count(t.child_id) = 1 THEN min(t.child_id) END,
                   NULLIF(count(t.child_id), 1) || CASE WHEN count(t.child_id) > 1 THEN ' sagas' END,
                   CASE WHEN bool_or(t.unknown) THEN 'outcome unknown' END,
                   'next attempt at ' || min(t.next_attempt_at),
                   'until ' || min(t.waits_until)) AS detail
        FROM t LEFT JOIN r ON r.position = t.position
        GROUP BY t.position, t.step, t.operation, t.round
    )
    SELECT row_number() OVER (ORDER BY o.started_at, o.position, o.round, o.operation)::integer,
           CASE o.operation WHEN 'action' THEN '' ELSE o.operation || ' of ' END || o.step
               || CASE WHEN o.round > 0 THEN ', round ' || o.round ELSE '' END,
           o.step, o.operation, o.position, o.round, COALESCE(o.kind, 'local'),
           o.elements, o.status, o.attempts,
           o.started_at, CASE WHEN o.status NOT IN ('running', 'waiting') THEN o.finished_at END,
           o.started_at IS NOT NULL AND o.status IN ('running', 'waiting'),
           a.failed_from, a.failed_to,
           CASE WHEN o.status <> 'skipped'
                THEN (o.error ->> 'message') || COALESCE(' (' || (o.error ->> 'sqlstate') || ')', '') END,
           NULLIF(o.detail, '')
    FROM o LEFT JOIN a ON a.step = o.step AND a.operation = o.operation AND a.round = o.round
    ORDER BY 1;
END
$$;
COMMENT ON FUNCTION saga.timeline_rows(bigint) IS
    'what saga.timeline() and saga.report() draw: the operations of a saga in the order in which they began; all elements of a step in one row';

CREATE FUNCTION saga.timeline_bar(width integer, begins timestamptz, ends timestamptz,
    started_at timestamptz, finished_at timestamptz)
RETURNS integer[]
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    -- the columns from .. to, from 0; a moment has one
    SELECT ARRAY[c.a, GREATEST(c.a, LEAST(width - 1, c.b))]
    FROM (SELECT LEAST(width - 1, GREATEST(0, floor(width * extract(epoch FROM started_at - begins) / d.length)))::integer AS a,
                 ceil(width * extract(epoch FROM finished_at - begins) / d.length)::integer - 1 AS b
          FROM (SELECT GREATEST(extract(epoch FROM ends - begins), 0.000001) AS length) d) c
$$;
COMMENT ON FUNCTION saga.timeline_bar(integer, timestamptz, timestamptz, timestamptz, timestamptz) IS
    'for saga.timeline(): which columns a span of time takes';

CREATE FUNCTION saga.timeline(saga_id bigint, width integer DEFAULT 80) RETURNS SETOF text
LANGUAGE plpgsql STABLE PARALLEL UNSAFE ROWS 20
SET search_path = pg_catalog, pg_temp SET jit = off
SET datestyle = iso SET intervalstyle = postgres
AS $$
#variable_conflict use_column
DECLARE
    s       record;
    r       record;
    at      timestamptz;
    until   timestamptz;
    labels  integer;
    columns integer;
    line    text;
    bar     integer[];
    mark    text;
BEGIN
    IF width IS NULL OR width < 40 OR width > 1000 THEN
        RAISE EXCEPTION 'width must be from 40 to 1000'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF $1 IS NULL THEN
        RETURN;
    END IF;
    SELECT x.saga_id, x.definition, x.version, x.key, x.status, x.finished_at,
           LEAST(x.created_at, x.started_at) AS begun_at
    INTO s FROM saga.sagas x WHERE x.saga_id = $1;
    IF NOT FOUND THEN
        RAISE EXCEPTION 'saga % does not exist', $1
            USING ERRCODE = 'undefined_object',
                  HINT = 'View saga.sagas has those that you may see.';
    END IF;
    at := s.begun_at;
    until := GREATEST(COALESCE(s.finished_at, clock_timestamp()), at);
    SELECT LEAST(GREATEST(max(length(saga.escape(x.label, 'plain'))), 8), width * 2 / 5)
    INTO labels FROM saga.timeline_rows($1) x;
    labels := COALESCE(labels, 8);
    columns := width - labels - 14;
    RETURN NEXT saga.escape(format('saga %s of %s version %s%s: %s', s.saga_id,
        COALESCE(s.definition, 'an unknown definition'), s.version, COALESCE(', key ' || left(s.key, 60), ''), s.status), 'plain');
    RETURN NEXT format('%s + %s%s', at, saga.time_text(extract(epoch FROM until - at)::double precision),
        CASE WHEN s.finished_at IS NULL THEN ', and it goes on' ELSE '' END);
    FOR r IN SELECT * FROM saga.timeline_rows($1) LOOP
        line := repeat(' ', columns);
        IF r.started_at IS NOT NULL THEN
            -- what waits for others, and what has several attempts, is not at work all the time
            mark := CASE WHEN r.kind <> 'local' AND r.operation = 'action' OR r.kind IN ('external', 'remote', 'child') THEN '-'
                         WHEN r.attempts > 1 OR r.status = 'waiting' THEN '.' ELSE '#' END;
            bar := saga.timeline_bar(columns, at, until, r.started_at,
                CASE WHEN r.goes_on THEN until ELSE COALESCE(r.finished_at, r.started_at) END);
            line := overlay(line PLACING repeat(mark, bar[2] - bar[1] + 1) FROM bar[1] + 1 FOR bar[2] - bar[1] + 1);
            FOR i IN 1 .. COALESCE(cardinality(r.failed_from), 0) LOOP
                bar := saga.timeline_bar(columns, at, until, r.failed_from[i], r.failed_to[i]);
                line := overlay(line PLACING repeat('x', bar[2] - bar[1] + 1) FROM bar[1] + 1 FOR bar[2] - bar[1] + 1);
            END LOOP;
            IF r.goes_on THEN
                line := overlay(line PLACING '>' FROM columns FOR 1);
            ELSIF r.status = 'succeeded' AND mark = '.' THEN
                -- of the attempt that succeeded only its end is known
                bar := saga.timeline_bar(columns, at, until, r.finished_at, r.finished_at);
                line := overlay(line PLACING '#' FROM bar[2] + 1 FOR 1);
            END IF;
        END IF;
        mark := saga.escape(r.label, 'plain');
        IF length(mark) > labels THEN
            mark := left(mark, labels - 2) || '..';
        END IF;
        RETURN NEXT format('%s |%s| %s', rpad(mark, labels), line,
            CASE WHEN r.started_at IS NULL OR r.status = 'skipped' THEN r.status
                 ELSE saga.time_text(extract(epoch FROM
                     CASE WHEN r.goes_on THEN until ELSE r.finished_at END - r.started_at)::double precision) END);
    END LOOP;
    FOR r IN SELECT x.verb, x.requested_by, x.requested_at, x.outcome FROM saga.requests x
             WHERE x.saga_id = $1 ORDER BY x.id LIMIT 50 LOOP
        bar := saga.timeline_bar(columns, at, until, r.requested_at, r.requested_at);
        mark := saga.escape(r.verb || ' by ' || r.requested_by, 'plain');
        IF length(mark) > labels THEN
            mark := left(mark, labels - 2) || '..';
        END IF;
        RETURN NEXT format('%s |%s| %s', rpad(mark, labels),
            overlay(repeat(' ', columns) PLACING '!' FROM bar[1] + 1 FOR 1),
            CASE WHEN r.outcome LIKE 'refused%' THEN 'refused' ELSE r.outcome END);
    END LOOP;
    RETURN NEXT '# at work  x failed  . until the next attempt  - waits for others  ! asked';
END
$$;
COMMENT ON FUNCTION saga.timeline(bigint, integer) IS
    'when each operation of a saga ran, failed and waited, as lines of text: for psql, with \pset format unaligned or -At';

CREATE FUNCTION saga.picture_svg(picture jsonb) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
DECLARE
    steps   constant integer := jsonb_array_length(picture -> 'steps');
    wide    constant integer := 208;        -- a box
    narrow  constant integer := 14;         -- what an edge takes that passes a rank
    gap     constant integer := 22;
    rise    constant integer := 30;         -- between ranks
    -- items: the steps, then the places where edges pass a rank
    ranks   integer[] := '{}';
    items   integer;
    centre  double precision[] := '{}';
    texts   jsonb[] := '{}';
    height  integer[] := '{}';              -- of a rank
    top     integer[] := '{}';
    -- pieces of edges, each from an item to one of the next rank
    above   integer[] := '{}';
    below   integer[] := '{}';
    edge    record;
    edges   jsonb := '[]';
    way     integer[];
    line    integer[];
    wanted  double precision[];
    x       double precision;
    shift   double precision;
    least   double precision := 0;
    most    double precision := 0;
    last    integer := 1;
    y       integer;
    step    jsonb;
    state   text;
    svg     text := '';
    path    text;
BEGIN
    IF steps = 0 OR steps > 150 THEN
        RETURN NULL;
    END IF;

    -- Each step one rank below the last of those before it.
    ranks := array_fill(1, ARRAY[steps]);
    FOR edge IN SELECT * FROM saga.picture_edges(picture) e WHERE e.source > 0 ORDER BY e.target, e.source LOOP
        ranks[edge.target] := GREATEST(ranks[edge.target], ranks[edge.source] + 1);
    END LOOP;
    items := steps;
    FOR edge IN SELECT * FROM saga.picture_edges(picture) e WHERE e.source > 0 LOOP
        way := ARRAY[edge.source];
        FOR r IN ranks[edge.source] + 1 .. ranks[edge.target] - 1 LOOP
            items := items + 1;
            ranks[items] := r;
            way := way || items;
        END LOOP;
        way := way || edge.target;
        FOR i IN 2 .. cardinality(way) LOOP
            above := above || way[i - 1];
            below := below || way[i];
        END LOOP;
        edges := edges || jsonb_build_array(jsonb_build_object('way', way, 'alternative', edge.alternative));
    END LOOP;
    SELECT max(r) INTO last FROM unnest(ranks) r;

    -- Each item below the middle of those above it, as far as there is room.
    centre := array_fill(0::double precision, ARRAY[items]);
    FOR r IN 1 .. last LOOP
        SELECT array_agg(o.i ORDER BY o.want, o.i), array_agg(o.want ORDER BY o.want, o.i)
        INTO line, wanted
        FROM (SELECT i.i::integer AS i, COALESCE(avg(centre[p.above]), 0) AS want
              FROM unnest(ranks) WITH ORDINALITY i(rank, i)
              LEFT JOIN unnest(above, below) p(above, below) ON p.below = i.i
              WHERE i.rank = r GROUP BY i.i) o;
        shift := 0;
        FOR k IN 1 .. cardinality(line) LOOP
            x := wanted[k];
            IF k > 1 THEN
                x := GREATEST(x, centre[line[k - 1]] + gap
                    + (CASE WHEN line[k] <= steps THEN wide ELSE narrow END
                       + CASE WHEN line[k - 1] <= steps THEN wide ELSE narrow END) / 2.0);
            END IF;
            centre[line[k]] := x;
            shift := shift + wanted[k] - x;
        END LOOP;
        shift := shift / cardinality(line);
        FOR k IN 1 .. cardinality(line) LOOP
            centre[line[k]] := centre[line[k]] + shift;
            least := LEAST(least, centre[line[k]]
                - CASE WHEN line[k] <= steps THEN wide ELSE narrow END / 2);
            most := GREATEST(most, centre[line[k]]
                + CASE WHEN line[k] <= steps THEN wide ELSE narrow END / 2);
        END LOOP;
    END LOOP;

    -- What stands in the boxes, and so how high a rank is.
    height := array_fill(0, ARRAY[last]);
    FOR i IN 1 .. steps LOOP
        step := picture -> 'steps' -> (i - 1);
        texts[i] := to_jsonb(saga.picture_lines(step)
            || CASE WHEN step ? 'only_if' THEN ARRAY['if ' || saga.picture_function(step ->> 'only_if')] ELSE '{}' END
            || CASE WHEN step ? 'compensation' OR step ? 'compensation_state'
                    THEN ARRAY['compensation' || COALESCE(': ' || (step ->> 'compensation_state'),
                                                          ': ' || saga.picture_function(step ->> 'compensation'), '')]
                    ELSE '{}' END
            || CASE WHEN step ? 'child_count'
                    THEN ARRAY[CASE WHEN (step ->> 'child_count')::bigint = 1
                                    THEN format('saga %s: %s', step #>> '{children,0,saga_id}', step #>> '{children,0,status}')
                                    ELSE (step ->> 'child_count') || ' sagas' END]
                    ELSE '{}' END);
        height[ranks[i]] := GREATEST(height[ranks[i]], 34 + 16 * jsonb_array_length(texts[i]));
    END LOOP;
    y := 2;
    FOR r IN 1 .. last LOOP
        top[r] := y;
        y := y + height[r] + rise;
    END LOOP;

    FOR edge IN SELECT ARRAY(SELECT jsonb_array_elements_text(e -> 'way'))::integer[] AS way,
                       (e ->> 'alternative')::boolean AS alternative
                FROM jsonb_array_elements(edges) e LOOP
        way := edge.way;
        path := '';
        FOR i IN 1 .. cardinality(way) LOOP
            x := round((centre[way[i]] - least + 2)::numeric, 1);
            IF i = 1 THEN
                step := to_jsonb(texts[way[1]]);
                path := format('M%s %s', x, top[ranks[way[1]]] + 34 + 16 * jsonb_array_length(step));
                y := top[ranks[way[1]]] + 34 + 16 * jsonb_array_length(step);
            ELSE
                path := path || format('C%s %s %s %s %s %s',
                    round((centre[way[i - 1]] - least + 2)::numeric, 1), y + rise * 2 / 3,
                    x, top[ranks[way[i]]] - rise * 2 / 3,
                    x, top[ranks[way[i]]] - CASE WHEN i = cardinality(way) THEN 3 ELSE 0 END);
                IF i < cardinality(way) THEN
                    y := top[ranks[way[i]]] + height[ranks[way[i]]];
                    path := path || format('V%s', y);
                END IF;
            END IF;
        END LOOP;
        svg := svg || format('<path class="edge%s" d="%s" marker-end="url(#arrow)"/>',
            CASE WHEN edge.alternative THEN ' alternative' ELSE '' END, path);
    END LOOP;
    FOR i IN 1 .. steps LOOP
        step := picture -> 'steps' -> (i - 1);
        -- what is wrong, or under way, is what is to be seen
        state := CASE WHEN step ->> 'compensation_state' IN ('failed', 'running', 'waiting') THEN step ->> 'compensation_state'
                      WHEN step ->> 'confirmation_state' IN ('failed', 'running', 'waiting') THEN step ->> 'confirmation_state'
                      ELSE saga.picture_class(step) END;
        x := round((centre[i] - least + 2 - wide / 2)::numeric, 1);
        y := top[ranks[i]];
        svg := svg || format(
            '<g class="step %s%s"><title>%s</title><rect class="box" x="%s" y="%s" width="%s" height="%s" rx="7"/>'
            '<rect class="edge-of" x="%s" y="%s" width="5" height="%s" rx="2.5"/><text class="name" x="%s" y="%s">%s</text>',
            state, CASE WHEN (step ->> 'pivot')::boolean THEN ' pivot' ELSE '' END,
            saga.escape(step ->> 'name', 'html'), x, y, wide, 26 + 16 * jsonb_array_length(texts[i]) + 8,
            x + 6, y + 8, 10 + 16 * jsonb_array_length(texts[i]) + 8, x + 19, y + 21,
            saga.escape(saga.cut_text(saga.escape(step ->> 'name', 'plain'), 21), 'html'));
        svg := svg || (SELECT string_agg(format('<text%s x="%s" y="%s">%s</text>',
                CASE WHEN l.line LIKE (step ->> 'state') || '%' THEN ' class="state"' ELSE '' END,
                x + 19, y + 21 + 16 * l.n, saga.escape(saga.cut_text(saga.escape(l.line, 'plain'), 30), 'html')), '' ORDER BY l.n)
            FROM jsonb_array_elements_text(texts[i]) WITH ORDINALITY l(line, n)) || '</g>';
    END LOOP;
    RETURN format('<svg class="graph" role="img" aria-label="%s" width="%s" height="%s" viewBox="0 0 %s %s">%s</svg>',
        saga.escape('Graph of ' || saga.picture_title(picture) || ', ' || steps || ' steps', 'html'),
        ceil(most - least) + 4, top[last] + height[last] + 4, ceil(most - least) + 4, top[last] + height[last] + 4, svg);
END
$$;
COMMENT ON FUNCTION saga.picture_svg(jsonb) IS
    'a picture as SVG, for the page of saga.report(), which has its colours; NULL if it would be too large to be looked at';

CREATE FUNCTION saga.cut_text(text text, length integer) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN pg_catalog.char_length($1) > $2 THEN pg_catalog.left($1, $2 - 3) || '...' ELSE $1 END
$$;
COMMENT ON FUNCTION saga.cut_text(text, integer) IS 'for pictures: a text, or its beginning';

------------------------------------------------------------------------------
-- The page: saga.report()
--
-- Everything is written out here: the page shows all there is to see without
-- its script, which only sorts and filters.  It has no style attributes and no
-- handlers, so its policy allows that one style sheet and that one script, by
-- their hashes, and nothing else.  Only ASCII comes out, so that it is the same
-- in every encoding.
------------------------------------------------------------------------------

CREATE FUNCTION saga.report_style() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $style$ SELECT $css$
:root { color-scheme: light;
  --page: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --muted: #57606a; --line: #d0d7de; --link: #0550ae;
  --head: #eef1f4; --focus: #0550ae;
  --succeeded: #1a7f37; --succeeded-fill: #dafbe1; --succeeded-ink: #0b4a1f;
  --failed: #cf222e; --failed-fill: #ffebe9; --failed-ink: #82071e;
  --running: #0969da; --running-fill: #ddf4ff; --running-ink: #0a3069;
  --waiting: #9a6700; --waiting-fill: #fff8c5; --waiting-ink: #4d2d00;
  --compensated: #8250df; --compensated-fill: #fbefff; --compensated-ink: #3e1f79;
  --skipped: #818b98; --skipped-fill: #f0f2f4; --skipped-ink: #4b535d; }
:root[data-theme="dark"] { color-scheme: dark;
  --page: #0d1117; --panel: #161b22; --ink: #e6edf3; --muted: #9da7b3; --line: #30363d; --link: #79b8ff;
  --head: #1c2128; --focus: #79b8ff;
  --succeeded: #3fb950; --succeeded-fill: #12261e; --succeeded-ink: #7ee787;
  --failed: #f85149; --failed-fill: #2d1216; --failed-ink: #ffa198;
  --running: #58a6ff; --running-fill: #0f2440; --running-ink: #a5d6ff;
  --waiting: #d29922; --waiting-fill: #2a2009; --waiting-ink: #f2cc60;
  --compensated: #bc8cff; --compensated-fill: #221a36; --compensated-ink: #d8bdff;
  --skipped: #6e7681; --skipped-fill: #1c2128; --skipped-ink: #a9b3bd; }
@media (prefers-color-scheme: dark) { :root:not([data-theme="light"]) { color-scheme: dark;
  --page: #0d1117; --panel: #161b22; --ink: #e6edf3; --muted: #9da7b3; --line: #30363d; --link: #79b8ff;
  --head: #1c2128; --focus: #79b8ff;
  --succeeded: #3fb950; --succeeded-fill: #12261e; --succeeded-ink: #7ee787;
  --failed: #f85149; --failed-fill: #2d1216; --failed-ink: #ffa198;
  --running: #58a6ff; --running-fill: #0f2440; --running-ink: #a5d6ff;
  --waiting: #d29922; --waiting-fill: #2a2009; --waiting-ink: #f2cc60;
  --compensated: #bc8cff; --compensated-fill: #221a36; --compensated-ink: #d8bdff;
  --skipped: #6e7681; --skipped-fill: #1c2128; --skipped-ink: #a9b3bd; } }
* { box-sizing: border-box; }
html { scroll-padding-top: 4rem; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, main, footer { max-width: 92rem; margin: 0 auto; padding: 0 1.5rem; }
header { padding-top: 1.75rem; display: flex; flex-wrap: wrap; gap: .25rem 1.5rem; align-items: flex-start; }
header div { flex: 1 1 24rem; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0; font-weight: 650; letter-spacing: -.01em; }
h2 { font-size: 1.2rem; margin: 0 0 .5rem; font-weight: 650; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; font-weight: 650; }
article h3 { margin: 0; }
section { margin: 2.5rem 0; }
p { margin: .4rem 0; }
a { color: var(--link); }
code { font: .86em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.muted { color: var(--muted); font-weight: 400; }
.one { white-space: nowrap; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.skip { position: absolute; left: -999rem; }
.skip:focus { left: 1rem; top: .5rem; background: var(--page); padding: .5rem 1rem; z-index: 9; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; border-radius: 3px; }
button, input { font: inherit; color: inherit; }
button.theme { border: 1px solid var(--line); background: var(--panel); border-radius: 6px; padding: .3rem .75rem; cursor: pointer; }
nav { position: sticky; top: 0; z-index: 5; background: var(--page); border-bottom: 1px solid var(--line); margin-top: 1rem; }
nav ul { display: flex; gap: .25rem 1.25rem; margin: 0 auto; max-width: 92rem; padding: .55rem 1.5rem; list-style: none;
  overflow-x: auto; white-space: nowrap; }
nav a { text-decoration: none; color: var(--ink); }
nav a:hover { text-decoration: underline; }
.count { color: var(--muted); font-variant-numeric: tabular-nums; }
.verdict { border: 1px solid var(--line); border-left: 5px solid var(--succeeded); border-radius: 6px; background: var(--panel);
  padding: .7rem 1rem; margin: 0 0 1rem; }
.verdict.critical { border-left-color: var(--failed); }
.verdict.warning { border-left-color: var(--waiting); }
.verdict strong { font-weight: 650; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(10.5rem, 1fr)); gap: .75rem; margin: 0; }
.tiles div { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .85rem .7rem; background: var(--panel); }
.tiles dt { color: var(--muted); font-size: .82rem; }
.tiles dd { margin: 0; font-size: 1.4rem; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.tiles dd small { font-size: .8rem; font-weight: 400; color: var(--muted); display: block; }
.tiles .bad dd { color: var(--failed-ink); }
.bar-of-table { display: flex; flex-wrap: wrap; gap: .4rem 1.25rem; align-items: center; margin: .4rem 0 .5rem; }
.filter input { border: 1px solid var(--skipped); border-radius: 6px; background: var(--page); padding: .25rem .6rem; width: 15rem; max-width: 100%; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .875rem; }
caption { text-align: left; padding: .5rem .75rem; color: var(--muted); }
th, td { text-align: left; vertical-align: top; padding: .42rem .6rem; border-top: 1px solid var(--line); }
thead th { background: var(--head); font-weight: 600; white-space: nowrap; vertical-align: bottom; border-top: 0; }
caption + thead th { border-top: 1px solid var(--line); }
tbody th { font-weight: 600; }
tbody tr:hover > * { background: var(--panel); }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.t { white-space: nowrap; font-variant-numeric: tabular-nums; }
tbody th, td:not([class]) { min-width: 7.5rem; }
.wide { min-width: 15rem; }
th button { all: unset; cursor: pointer; font-weight: 600; position: relative; }
th button:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; border-radius: 3px; }
th button::after { content: "\2195"; color: var(--muted); font-weight: 400; position: absolute; left: calc(100% + 1px); }
@media (hover: hover) { th:not([aria-sort]) button:not(:hover):not(:focus-visible)::after { opacity: 0; } }
th[aria-sort="ascending"] button::after { content: "\2191"; color: var(--ink); }
th[aria-sort="descending"] button::after { content: "\2193"; color: var(--ink); }
.pill { display: inline-block; border-radius: 999px; border: 1px solid; padding: 0 .55rem; font-size: .8rem; line-height: 1.45; white-space: nowrap; font-weight: 500; }
.pill.succeeded { color: var(--succeeded-ink); background: var(--succeeded-fill); border-color: var(--succeeded); }
.pill.failed { color: var(--failed-ink); background: var(--failed-fill); border-color: var(--failed); }
.pill.running { color: var(--running-ink); background: var(--running-fill); border-color: var(--running); }
.pill.waiting { color: var(--waiting-ink); background: var(--waiting-fill); border-color: var(--waiting); }
.pill.compensated { color: var(--compensated-ink); background: var(--compensated-fill); border-color: var(--compensated); }
.pill.skipped, .pill.pending { color: var(--skipped-ink); background: var(--skipped-fill); border-color: var(--skipped); }
.bad { color: var(--failed-ink); }
.none { color: var(--muted); border: 1px dashed var(--line); border-radius: 6px; padding: .7rem 1rem; }
.choice:checked + label { font-weight: 650; }
main:has(#w1m:checked) :is(.w1h, .w1d), main:has(#w1h:checked) :is(.w1m, .w1d),
main:has(#w1d:checked) :is(.w1m, .w1h) { display: none; }
.switch { border: 0; padding: 0; margin: 2.5rem 0 -1.5rem; }
.switch legend { float: left; padding: 0; margin-right: 1rem; color: var(--muted); }
.choice { margin: 0 .3rem 0 0; accent-color: var(--link); }
.choice + label { margin-right: 1rem; }
.meter { display: block; width: 6rem; height: 5px; margin: .2rem 0 0 auto; }
.meter rect { fill: var(--running); }
.meter .track { fill: var(--line); }
article { border: 1px solid var(--line); border-radius: 8px; margin: 1rem 0; padding: 1rem 1.25rem 1.25rem; }
article header { padding: 0; gap: .4rem .8rem; align-items: center; max-width: none; }
.facts { display: flex; flex-wrap: wrap; gap: .2rem 1.75rem; margin: .6rem 0; }
.facts div { display: flex; gap: .45rem; }
.facts dt { color: var(--muted); }
.facts dd { margin: 0; }
.cause { border-left: 4px solid var(--failed); background: var(--failed-fill); color: var(--failed-ink); border-radius: 4px; padding: .45rem .8rem; margin: .6rem 0; }
.cause b { font-weight: 650; }
ul.plain { margin: .3rem 0 .6rem; padding-left: 1.1rem; }
.two { display: flex; flex-wrap: wrap; gap: 1.25rem; align-items: flex-start; margin-top: .8rem; }
.two > .picture { flex: 0 1 auto; max-width: 100%; min-width: 0; overflow: auto; max-height: 46rem; }
.two > .scroll { flex: 1 1 38rem; min-width: 0; }
svg.graph { display: block; height: auto; }
.graph text { font-size: 12px; fill: var(--muted); }
.graph text.name { font-size: 13.5px; font-weight: 650; fill: var(--ink); }
.graph .box { fill: var(--panel); stroke: var(--line); stroke-width: 1.25; }
.graph .edge-of { fill: var(--skipped); }
.graph .edge { fill: none; stroke: var(--skipped); stroke-width: 1.5; }
.graph .alternative { stroke-dasharray: 5 4; }
.graph .pivot .box { stroke-width: 3.5; }
.graph .succeeded .box { fill: var(--succeeded-fill); stroke: var(--succeeded); }
.graph .succeeded .edge-of { fill: var(--succeeded); }
.graph .succeeded text { fill: var(--succeeded-ink); }
.graph .failed .box { fill: var(--failed-fill); stroke: var(--failed); }
.graph .failed .edge-of { fill: var(--failed); }
.graph .failed text { fill: var(--failed-ink); }
.graph .running .box { fill: var(--running-fill); stroke: var(--running); }
.graph .running .edge-of { fill: var(--running); }
.graph .running text { fill: var(--running-ink); }
.graph .waiting .box { fill: var(--waiting-fill); stroke: var(--waiting); }
.graph .waiting .edge-of { fill: var(--waiting); }
.graph .waiting text { fill: var(--waiting-ink); }
.graph .compensated .box { fill: var(--compensated-fill); stroke: var(--compensated); }
.graph .compensated .edge-of { fill: var(--compensated); }
.graph .compensated text { fill: var(--compensated-ink); }
.graph .skipped .box { stroke-dasharray: 5 4; }
.graph text.state { font-weight: 600; }
#arrow path { fill: var(--skipped); }
.defs { position: absolute; width: 0; height: 0; }
.gantt .when { min-width: 15rem; width: 45%; padding-left: 0; padding-right: 0; }
.gantt tbody th { min-width: 9rem; }
.gantt .wide { min-width: 12rem; }
.gantt svg { display: block; width: 100%; height: 18px; overflow: visible; }
.gantt .axis text { font-size: 11px; fill: var(--muted); font-weight: 400; }
.gantt .grid { stroke: var(--line); stroke-width: 1; }
.work { fill: var(--succeeded); }
.undo { fill: var(--compensated); }
.others { fill: var(--waiting); }
.pause { fill: var(--skipped); }
.wrong { fill: var(--failed); }
.now { fill: var(--running); }
.asked { stroke: var(--ink); stroke-width: 2; }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; list-style: none; margin: 0; padding: .5rem .75rem; color: var(--muted); font-size: .82rem; border-top: 1px solid var(--line); }
.key svg { display: inline-block; width: 16px; height: 12px; margin-right: .35rem; vertical-align: -1px; }
footer { color: var(--muted); font-size: .85rem; border-top: 1px solid var(--line); padding-top: 1rem; padding-bottom: 2.5rem; margin-top: 3rem; }
[hidden] { display: none !important; }
@media (max-width: 40rem) {
  header, main, footer { padding-left: 1rem; padding-right: 1rem; }
  nav ul { padding-left: 1rem; padding-right: 1rem; }
  article { padding: .8rem .8rem 1rem; }
  .tiles { grid-template-columns: repeat(2, minmax(0, 1fr)); gap: .5rem; }
  .tiles dd { font-size: 1.2rem; }
  tbody th { position: sticky; left: 0; background: var(--page); max-width: 11rem; overflow-wrap: anywhere; }
  .gantt .when { min-width: 12rem; }
}
@media print {
  nav, .filter, button.theme, .switch { display: none; }
  .scroll, .two > .picture { overflow: visible; max-height: none; }
  section, article { break-inside: avoid-page; }
}
$css$::text $style$;
COMMENT ON FUNCTION saga.report_style() IS 'the style sheet of saga.report()';

CREATE FUNCTION saga.report_script() RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $script$ SELECT $js$
(function () {
'use strict';

// Light, dark, or what the system says.
var themes = ['automatic', 'light', 'dark'], theme = 0;
var button = document.querySelector('button.theme');
button.hidden = false;
button.addEventListener('click', function () {
  theme = (theme + 1) % 3;
  if (theme) {
    document.documentElement.setAttribute('data-theme', themes[theme]);
  } else {
    document.documentElement.removeAttribute('data-theme');
  }
  button.textContent = 'Theme: ' + themes[theme];
});

// A cell's data-v is what it is sorted by: a number; else its text is.
function value(row, column) {
  var cell = row.cells[column];
  if (cell.hasAttribute('data-v')) {
    var v = cell.getAttribute('data-v');
    return v === '' ? null : Number(v);
  }
  return cell.textContent.trim().toLowerCase() || null;
}

function compare(a, b) {
  return typeof a === 'number' && typeof b === 'number' ? a - b :
    String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0;
}

// What is empty comes last, whichever way.
function sort(table, column, way) {
  var body = table.tBodies[0];
  var rows = Array.prototype.map.call(body.rows, function (row, n) {
    return { row: row, v: value(row, column), n: n };
  });
  rows.sort(function (a, b) {
    if (a.v === null || b.v === null) { return (a.v === null) - (b.v === null) || a.n - b.n; }
    return way * compare(a.v, b.v) || a.n - b.n;
  });
  rows.forEach(function (r) { body.appendChild(r.row); });
}

document.querySelectorAll('table.sorts').forEach(function (table) {
  var heads = table.tHead.rows[0].cells;
  Array.prototype.forEach.call(heads, function (head, column) {
    var b = document.createElement('button');
    b.type = 'button';
    while (head.firstChild) { b.appendChild(head.firstChild); }
    head.appendChild(b);
    b.addEventListener('click', function () {
      var numbers = head.classList.contains('n');
      var now = head.getAttribute('aria-sort');
      var down = now ? now === 'ascending' : numbers;
      Array.prototype.forEach.call(heads, function (h) { h.removeAttribute('aria-sort'); });
      head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
      sort(table, column, down ? -1 : 1);
    });
  });
});

// Rows that have all the words.
document.querySelectorAll('.filter').forEach(function (filter) {
  var input = filter.querySelector('input');
  var output = filter.querySelector('output');
  var rows = document.getElementById(filter.getAttribute('data-for')).tBodies[0].rows;
  filter.hidden = rows.length < 6;
  input.addEventListener('input', function () {
    var words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    var shown = 0;
    Array.prototype.forEach.call(rows, function (row) {
      var text = row.textContent.toLowerCase();
      row.hidden = !words.every(function (word) { return text.indexOf(word) >= 0; });
      shown += row.hidden ? 0 : 1;
    });
    output.textContent = words.length ? shown + ' of ' + rows.length : '';
  });
});
})();
$js$::text $script$;
COMMENT ON FUNCTION saga.report_script() IS 'the script of saga.report()';

-- These small ones have no search_path of their own, so that they can be planned
-- as a part of those that call them, which have one.

CREATE FUNCTION saga.report_text(text text, length integer DEFAULT 2000) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT '<span class="text">' || saga.escape(saga.cut_text($1, $2), 'html') || '</span>'
$$;
COMMENT ON FUNCTION saga.report_text(text, integer) IS 'for saga.report(): a user''s text';

CREATE FUNCTION saga.report_count(n numeric) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.btrim(pg_catalog.to_char($1, '999,999,999,999,999,990'))
$$;
COMMENT ON FUNCTION saga.report_count(numeric) IS 'for saga.report(): how many';

CREATE FUNCTION saga.report_rate(rate double precision) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT CASE WHEN $1 = 0 THEN '0' WHEN $1 < 0.01 THEN '&#60; 0.01'
        WHEN $1 < 10 THEN pg_catalog.round($1::numeric, 2)::text WHEN $1 < 100 THEN pg_catalog.round($1::numeric, 1)::text
        ELSE saga.report_count($1::numeric) END
$$;
COMMENT ON FUNCTION saga.report_rate(double precision) IS 'for saga.report(): how many per minute';

CREATE FUNCTION saga.report_time(at timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT CASE WHEN isfinite($1) THEN
        format('<time datetime="%s">%s</time>', to_char($1 AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
            to_char($1, 'YYYY-MM-DD HH24:MI:SS')) END
$$;
COMMENT ON FUNCTION saga.report_time(timestamptz) IS 'for saga.report(): a time, in the time zone of the session';

CREATE FUNCTION saga.report_cell(html text, value double precision, class text DEFAULT 'n') RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT '<td class="' || $3 || '" data-v="'
        || CASE WHEN $2 IN ('Infinity', '-Infinity', 'NaN') THEN '' ELSE COALESCE($2::text, '') END
        || '">' || COALESCE($1, '') || '</td>'
$$;
COMMENT ON FUNCTION saga.report_cell(text, double precision, text) IS
    'for saga.report(): a cell of a table, with the number that it is sorted by';

CREATE FUNCTION saga.report_duration(seconds double precision, class text DEFAULT 'n') RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT saga.report_cell(saga.time_text($1), $1, $2)
$$;
COMMENT ON FUNCTION saga.report_duration(double precision, text) IS 'for saga.report(): a cell that has a duration';

CREATE FUNCTION saga.report_since(at timestamptz, now timestamptz) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT saga.report_cell(
        saga.report_time($1) || '<br><span class="muted">'
            || saga.time_text(extract(epoch FROM $2 - $1)::double precision) || '</span>',
        extract(epoch FROM $1)::double precision, 't')
$$;
COMMENT ON FUNCTION saga.report_since(timestamptz, timestamptz) IS 'for saga.report(): a cell that has a time, and how long that is ago';

CREATE FUNCTION saga.report_pill(status text, class text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$
    SELECT '<span class="pill ' || $2 || '">' || saga.escape($1, 'html') || '</span>'
$$;
COMMENT ON FUNCTION saga.report_pill(text, text) IS 'for saga.report(): a state, in colour';

-- "head" has the headings, "n:" before those of numbers and "w1m:" before those
-- of one window of time.
CREATE FUNCTION saga.report_table(id text, caption text, head text[], rows text)
RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('<div class="bar-of-table"><label class="filter" data-for="%1$s" hidden>Filter '
        '<input type="search" autocomplete="off" spellcheck="false"> <output class="muted"></output></label></div>'
        '<div class="scroll" role="region" aria-label="%2$s" tabindex="0"><table class="sorts" id="%1$s">'
        '<caption>%2$s</caption><thead><tr>%3$s</tr></thead><tbody>%4$s</tbody></table></div>',
        $1, $2,
        (SELECT string_agg(format('<th scope="col"%s>%s</th>', ' class="' || NULLIF(array_to_string(h.part[:cardinality(h.part) - 1], ' '), '') || '"',
                    h.part[cardinality(h.part)]), '' ORDER BY h.n)
         FROM (SELECT string_to_array(x.head, ':') AS part, x.n FROM unnest($3) WITH ORDINALITY x(head, n)) h),
        $4)
$$;
COMMENT ON FUNCTION saga.report_table(text, text, text[], text) IS
    'for saga.report(): a table that can be sorted and filtered; NULL if it has no rows';

CREATE FUNCTION saga.report_none(what text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT '<p class="none">' || $1 || '</p>'
$$;
COMMENT ON FUNCTION saga.report_none(text) IS 'for saga.report(): why there is no table';

CREATE FUNCTION saga.report_may(relation text) RETURNS boolean
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT has_table_privilege('saga.' || $1, 'SELECT')
$$;
COMMENT ON FUNCTION saga.report_may(text) IS 'for saga.report(): may the current user read this view?';

CREATE FUNCTION saga.report_overview(definition text) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now     constant timestamptz := clock_timestamp();
    unfinished bigint;
    stuck   bigint;
    ready   bigint;
    oldest  timestamptz;
    critical bigint := 0;
    warning bigint := 0;
    kinds   text;
    tiles   text := '';
BEGIN
    IF saga.report_may('alerts') THEN
        SELECT sum(x.n) FILTER (WHERE x.severity = 'critical'), sum(x.n) FILTER (WHERE x.severity <> 'critical'),
               string_agg(format('%s %s', saga.report_count(x.n), saga.escape(replace(x.alert, '_', ' '), 'html')), ', '
                          ORDER BY x.severity, x.n DESC, x.alert)
        INTO critical, warning, kinds
        FROM (SELECT a.alert, a.severity, count(*) AS n FROM saga.alerts a
              WHERE $1 IS NULL OR a.definition = $1 GROUP BY 1, 2) x;
    END IF;
    -- the counters know it without a look at the rows, if all of them are to be seen
    SELECT sum(x.scheduled + x.running + x.compensating + x.held + x.stuck + x.paused),
           sum(x.stuck), sum((x.waiting ->> 'worker')::bigint), min(x.oldest_created_at)
    INTO unfinished, stuck, ready, oldest FROM saga.health x
    WHERE saga.sees_all() AND ($1 IS NULL OR x.definition = $1);
    IF unfinished IS NULL THEN
        SELECT count(*), count(*) FILTER (WHERE a.status = 'stuck'),
               count(*) FILTER (WHERE a.status IN ('running', 'compensating') AND a.waiting_for IS NULL),
               min(a.created_at)
        INTO unfinished, stuck, ready, oldest FROM saga.alive a WHERE $1 IS NULL OR a.definition = $1;
    END IF;
    tiles := format('<div><dt>Unfinished</dt><dd>%s<small>%s ready for a worker</small></dd></div>'
        '<div%s><dt>Stuck</dt><dd>%s<small>wait for a person</small></dd></div>'
        '<div><dt>Oldest unfinished</dt><dd>%s<small>%s</small></dd></div>',
        saga.report_count(unfinished), saga.report_count(COALESCE(ready, 0)),
        CASE WHEN stuck > 0 THEN ' class="bad"' ELSE '' END, saga.report_count(stuck),
        COALESCE(saga.time_text(extract(epoch FROM now - oldest)::double precision), 'none'),
        COALESCE('since ' || saga.report_time(oldest), '&#160;'));
    IF saga.report_may('health') THEN
        SELECT tiles || format('<div><dt>Begun</dt><dd>%s<small>per minute, in the last hour</small></dd></div>'
                '<div><dt>Ended</dt><dd>%s<small>per minute, in the last hour</small></dd></div>'
                '<div><dt>Compensated</dt><dd>%s<small>of those that ended in the last hour</small></dd></div>',
                saga.report_rate(COALESCE(sum(x.begun_1h), 0)),
                saga.report_rate(COALESCE(sum(x.completed_1h + x.compensated_1h + x.abandoned_1h), 0)),
                COALESCE(round((100 * sum(x.compensated_1h)
                    / NULLIF(sum(x.completed_1h + x.compensated_1h + x.abandoned_1h), 0))::numeric, 1) || ' %', 'none'))
        INTO tiles FROM saga.health x WHERE $1 IS NULL OR x.definition = $1;
    END IF;
    RETURN saga.report_section('overview', 'Overview', format('<p class="verdict%s">%s</p><dl class="tiles">%s</dl>',
        CASE WHEN critical > 0 OR stuck > 0 THEN ' critical' WHEN warning > 0 THEN ' warning' ELSE '' END,
        CASE WHEN kinds IS NOT NULL
             THEN format('<strong>%s</strong> <a href="#alerts">%s</a>',
                      CASE WHEN critical > 0 THEN 'Somebody has to act:' ELSE 'Have a look:' END, kinds)
             WHEN stuck > 0
             THEN format('<strong>Somebody has to act:</strong> <a href="#stuck">%s stuck</a>', saga.report_count(stuck))
             WHEN NOT saga.report_may('alerts') THEN 'Alerts are not for this role to see.'
             ELSE '<strong>Nothing asks for attention.</strong>' END,
        tiles));
END
$$;
COMMENT ON FUNCTION saga.report_overview(text) IS 'a section of saga.report(): the numbers in large';

CREATE FUNCTION saga.report_section(id text, heading text, html text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('<section id="%1$s" aria-labelledby="h-%1$s"><h2 id="h-%1$s">%2$s</h2>%3$s</section>', $1, $2, $3)
$$;
COMMENT ON FUNCTION saga.report_section(text, text, text) IS 'for saga.report(): a section, with its heading';

CREATE FUNCTION saga.report_alerts(definition text, max_rows integer) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now     constant timestamptz := clock_timestamp();
    rows    text;
    n       bigint;
BEGIN
    IF NOT saga.report_may('alerts') THEN
        RETURN saga.report_none('Alerts are not for this role to see.');
    END IF;
    SELECT string_agg(x.html, ''), max(x.total) INTO rows, n
    FROM (
        SELECT count(*) OVER () AS total,
               format('<tr><th scope="row">%s</th><td>%s</td><td>%s</td>%s<td class="wide">%s</td><td><code>%s</code></td></tr>',
                   saga.report_text(replace(a.alert, '_', ' ')),
                   saga.report_pill(a.severity, CASE a.severity WHEN 'critical' THEN 'failed' ELSE 'waiting' END),
                   saga.report_text(a.subject) || COALESCE('<br><span class="muted">' || saga.report_text(NULLIF(a.definition, a.subject)) || '</span>', ''),
                   saga.report_since(a.since, now), COALESCE(saga.report_text(a.message, 500), ''),
                   COALESCE(saga.report_text(a.hint, 500), '')) AS html
        FROM saga.alerts a WHERE a.alert <> 'stuck' AND ($1 IS NULL OR a.definition = $1)
        ORDER BY a.severity <> 'critical', a.since, a.subject LIMIT $2) x;
    IF rows IS NULL THEN
        RETURN saga.report_none('None, apart from what is <a href="#stuck">stuck</a>.');
    END IF;
    RETURN saga.report_table('t-alerts',
        CASE WHEN n > $2 THEN format('The first %s of %s alerts', $2, saga.report_count(n))
             ELSE format('%s alert%s', n, CASE n WHEN 1 THEN '' ELSE 's' END) END || ', apart from what is stuck',
        '{Alert,Severity,About,t:Since,wide:What is known,What shows more}', rows);
END
$$;
COMMENT ON FUNCTION saga.report_alerts(text, integer) IS 'a section of saga.report(): what somebody should see to';

CREATE FUNCTION saga.report_health(definition text, max_rows integer) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now     constant timestamptz := clock_timestamp();
    rows    text;
    n       bigint;
BEGIN
    IF NOT saga.report_may('health') THEN
        RETURN saga.report_none('The counters are not for this role to see.');
    END IF;
    SELECT string_agg(x.html, ''), max(x.total) INTO rows, n
    FROM (
        SELECT count(*) OVER () AS total,
               format('<tr><th scope="row">%s<br><span class="muted">%s</span></th>',
                      COALESCE(saga.report_text(h.definition), 'others'), saga.report_text(h.owner))
               || saga.report_cell(saga.report_count(c.unfinished), c.unfinished)
               || saga.report_cell(saga.report_count(h.running), h.running)
               || saga.report_cell(saga.report_count(h.compensating), h.compensating)
               || saga.report_cell(CASE WHEN h.stuck > 0 THEN '<strong class="bad">' || saga.report_count(h.stuck) || '</strong>'
                                        ELSE '0' END, h.stuck)
               || format('<td>%s</td>', COALESCE((
                      SELECT string_agg(format('%s: %s', saga.escape(w.key, 'html'), saga.report_count(w.value::numeric)), '<br>'
                                        ORDER BY w.value::numeric DESC, w.key)
                      FROM jsonb_each_text(h.waiting) w WHERE w.value::numeric > 0), ''))
               || saga.report_duration(extract(epoch FROM now - h.oldest_created_at)::double precision)
               || saga.report_window('w1m', h.begun_1m, h.completed_1m, h.compensated_1m, h.compensation_ratio_1m, h.p50_1m, h.p95_1m, h.p99_1m)
               || saga.report_window('w1h', h.begun_1h, h.completed_1h, h.compensated_1h, h.compensation_ratio_1h, h.p50_1h, h.p95_1h, h.p99_1h)
               || saga.report_window('w1d', h.begun_1d, h.completed_1d, h.compensated_1d, h.compensation_ratio_1d, h.p50_1d, h.p95_1d, h.p99_1d)
               || '</tr>' AS html
        FROM saga.health h CROSS JOIN LATERAL (
            SELECT h.scheduled + h.running + h.compensating + h.held + h.stuck + h.paused AS unfinished) c
        WHERE $1 IS NULL OR h.definition = $1
        ORDER BY h.stuck > 0 DESC, c.unfinished DESC, h.begun_1d DESC NULLS LAST, h.definition LIMIT $2) x;
    IF rows IS NULL THEN
        RETURN saga.report_none('No definition is known, or saga is not loaded by <code>shared_preload_libraries</code>.');
    END IF;
    RETURN saga.report_table('t-health',
        CASE WHEN n > $2 THEN format('The first %s of %s definitions, rates per minute', $2, saga.report_count(n))
             ELSE format('%s definition%s, rates per minute', n, CASE n WHEN 1 THEN '' ELSE 's' END) END,
        ARRAY['Definition', 'n:Unfinished', 'n:Running', 'n:Compensating', 'n:Stuck', 'Wait for', 'n:Oldest']
        || (SELECT array_agg('n:' || w || ':' || t ORDER BY w.n, t.n)
            FROM unnest('{w1m,w1h,w1d}'::text[]) WITH ORDINALITY w(w, n),
                 unnest('{Begun,Completed,Compensated,p50,p95,p99}'::text[]) WITH ORDINALITY t(t, n)),
        rows);
END
$$;
COMMENT ON FUNCTION saga.report_health(text, integer) IS 'a section of saga.report(): each definition';

CREATE FUNCTION saga.report_window(class text, begun double precision, completed double precision,
    compensated double precision, ratio double precision,
    p50 interval, p95 interval, p99 interval)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT saga.report_cell(saga.report_rate($2), $2, 'n ' || $1)
        || saga.report_cell(saga.report_rate($3), $3, 'n ' || $1)
        || saga.report_cell(saga.report_rate($4)
               || COALESCE('<br><span class="muted">' || round((100 * $5)::numeric, 1) || ' %</span>', ''), $4, 'n ' || $1)
        || saga.report_duration(extract(epoch FROM $6)::double precision, 'n ' || $1)
        || saga.report_duration(extract(epoch FROM $7)::double precision, 'n ' || $1)
        || saga.report_duration(extract(epoch FROM $8)::double precision, 'n ' || $1)
$$;
COMMENT ON FUNCTION saga.report_window(text, double precision, double precision, double precision, double precision, interval, interval, interval) IS
    'for saga.report(): the cells of one window of time';

CREATE FUNCTION saga.report_stuck(definition text, max_rows integer, drawn bigint[]) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now     constant timestamptz := clock_timestamp();
    rows    text;
    n       bigint;
BEGIN
    SELECT string_agg(x.html, ''), count(*) INTO rows, n
    FROM (
        SELECT format('<tr><th scope="row">%s</th><td>%s%s</td><td>%s</td>',
                   CASE WHEN s.saga_id = ANY ($3) THEN format('<a href="#saga-%s">%s</a>', s.saga_id, s.saga_id)
                        ELSE s.saga_id::text END,
                   saga.report_text(COALESCE(s.definition, 'unknown')),
                   COALESCE('<br><span class="muted">' || saga.report_text(s.key, 100) || '</span>', ''),
                   saga.report_text(format('%s of %s%s', s.operation, s.step, '[' || s.element || ']'))
                   || CASE WHEN s.operations > 1
                           THEN format('<br><span class="muted">and %s more</span>', s.operations - 1) ELSE '' END)
               || saga.report_cell(saga.report_count(s.attempts), s.attempts)
               || saga.report_since(s.since, now)
               || format('<td class="wide">%s</td><td class="wide">%s</td></tr>',
                   saga.report_error(s.cause),
                   saga.report_error(s.last_error)) AS html
        FROM saga.stuck s WHERE $1 IS NULL OR s.definition = $1
        ORDER BY s.saga_id LIMIT $2) x;
    IF rows IS NULL THEN
        RETURN saga.report_none('None.');
    END IF;
    RETURN saga.report_table('t-stuck',
        CASE WHEN n = $2 THEN format('The first %s, the oldest first', saga.report_count(n))
             ELSE format('%s saga%s, the oldest first', n, CASE n WHEN 1 THEN '' ELSE 's' END) END,
        '{Saga,Definition and key,Stuck at,n:Attempts,t:Since,wide:First cause,wide:Last error}', rows)
        || '<p class="muted">Mend the cause, then <code>saga.retry(saga, reason)</code>; or do it by hand and '
           '<code>saga.skip(saga, reason)</code>; or <code>saga.abandon(saga, reason)</code>. '
           'In bulk: <code>SELECT saga.retry(saga_id, &#39;the bank is back&#39;) FROM saga.stuck WHERE ...</code></p>';
END
$$;
COMMENT ON FUNCTION saga.report_stuck(text, integer, bigint[]) IS 'a section of saga.report(): what waits for a person';

CREATE FUNCTION saga.report_error(error jsonb) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT saga.report_text($1 ->> 'message', 500)
        || COALESCE(' <span class="muted">(' || saga.escape($1 ->> 'sqlstate', 'html') || ')</span>', '')
        || COALESCE('<br><span class="muted">in ' || saga.escape(concat_ws(' of ', $1 ->> 'operation', saga.cut_text($1 ->> 'step', 100)), 'html')
                     || CASE WHEN $1 ? 'step' THEN '</span>' END, '')
$$;
COMMENT ON FUNCTION saga.report_error(jsonb) IS 'for saga.report(): an error that a saga has kept';

CREATE FUNCTION saga.report_steps(definition text, max_rows integer) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    rows    text;
    n       bigint;
BEGIN
    IF NOT saga.report_may('step_health') THEN
        RETURN saga.report_none('The counters are not for this role to see.');
    END IF;
    SELECT string_agg(x.html, ''), max(x.total) INTO rows, n
    FROM (
        SELECT count(*) OVER () AS total,
               format('<tr><th scope="row">%s</th><td>%s</td><td>%s</td>', saga.report_text(h.step),
                      saga.report_text(h.definition), h.operation)
               || saga.report_cell(saga.report_count(h.succeeded), h.succeeded)
               || saga.report_cell(CASE WHEN h.failed > 0 THEN '<span class="bad">' || saga.report_count(h.failed) || '</span>'
                                        ELSE '0' END, h.failed)
               || saga.report_step_window('w1m', h.succeeded_1m, h.failed_1m, h.p50_1m, h.p95_1m, h.p99_1m, max(h.p95_1m) OVER ())
               || saga.report_step_window('w1h', h.succeeded_1h, h.failed_1h, h.p50_1h, h.p95_1h, h.p99_1h, max(h.p95_1h) OVER ())
               || saga.report_step_window('w1d', h.succeeded_1d, h.failed_1d, h.p50_1d, h.p95_1d, h.p99_1d, max(h.p95_1d) OVER ())
               || '</tr>' AS html
        FROM saga.step_health h WHERE $1 IS NULL OR h.definition = $1
        ORDER BY COALESCE(h.p95_1h, h.p95_1d, h.p95_1m) DESC NULLS LAST,
                 h.seconds / NULLIF(h.succeeded + h.failed, 0) DESC NULLS LAST, h.definition, h.step, h.operation
        LIMIT $2) x;
    IF rows IS NULL THEN
        RETURN saga.report_none('No step was counted yet, or saga is not loaded by <code>shared_preload_libraries</code>.');
    END IF;
    RETURN saga.report_table('t-steps',
        format('%s of %s, the slowest in the last hour first; times are those of an attempt',
            CASE WHEN n > $2 THEN 'The first ' || $2 ELSE 'All' END, saga.report_count(n)),
        ARRAY['Step', 'Definition', 'Operation', 'n:Succeeded', 'n:Failed']
        || (SELECT array_agg('n:' || w || ':' || t ORDER BY w.n, t.n)
            FROM unnest('{w1m,w1h,w1d}'::text[]) WITH ORDINALITY w(w, n),
                 unnest('{Succeeded/min,Failed/min,p50,p95,p99}'::text[]) WITH ORDINALITY t(t, n)),
        rows);
END
$$;
COMMENT ON FUNCTION saga.report_steps(text, integer) IS 'a section of saga.report(): how long steps take';

CREATE FUNCTION saga.report_step_window(class text, succeeded double precision, failed double precision,
    p50 interval, p95 interval, p99 interval, longest interval)
RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT saga.report_cell(saga.report_rate($2), $2, 'n ' || $1)
        || saga.report_cell(CASE WHEN $3 > 0 THEN '<span class="bad">' || saga.report_rate($3) || '</span>'
                                 ELSE saga.report_rate($3) END, $3, 'n ' || $1)
        || saga.report_duration(extract(epoch FROM $4)::double precision, 'n ' || $1)
        || saga.report_cell(saga.time_text(extract(epoch FROM $5)::double precision)
               || COALESCE(format('<svg class="meter" aria-hidden="true"><rect class="track" width="100%%" height="5" rx="2"/>'
                                  '<rect width="%s%%" height="5" rx="2"/></svg>',
                      round(100 * extract(epoch FROM $5) / NULLIF(extract(epoch FROM $7), 0), 1)), ''),
               extract(epoch FROM $5)::double precision, 'n ' || $1)
        || saga.report_duration(extract(epoch FROM $6)::double precision, 'n ' || $1)
$$;
COMMENT ON FUNCTION saga.report_step_window(text, double precision, double precision, interval, interval, interval, interval) IS
    'for saga.report(): the cells of one window of time';

CREATE FUNCTION saga.report_server(max_rows integer) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    now     constant timestamptz := clock_timestamp();
    rows    text;
    html    text := '';
BEGIN
    IF saga.report_may('vitals') THEN
        SELECT string_agg(format('<div><dt>%s</dt><dd>%s</dd></div>', e.name, e.html), '' ORDER BY e.n)
        INTO rows
        FROM saga.vitals v CROSS JOIN LATERAL (VALUES
            (1, 'Background processes', CASE WHEN NOT v.enabled THEN 'saga.enabled is off'
                                             WHEN NOT v.launcher THEN 'no launcher'
                                             ELSE format('%s of %s workers that are wanted', v.workers, v.workers_wanted) END
                                        || COALESCE('; ' || saga.report_text(v.no_worker, 200), '')),
            (2, 'Oldest saga that is due', format('saga %s of role %s, since %s', v.oldest_due_id,
                    saga.report_text(v.oldest_due_role), saga.report_time(v.oldest_due_at))),
            (3, 'Dead tuples', saga.report_count(v.dead_tuples)
                    || COALESCE(format(', most in %s: %s (%s %%), vacuumed %s', saga.report_text(v.worst_table),
                           saga.report_count(v.worst_table_dead), round((100 * v.worst_table_ratio)::numeric),
                           COALESCE(saga.report_time(v.worst_table_vacuumed), 'never')), '')),
            (4, 'Oldest snapshot', saga.report_count(v.horizon_age) || ' transactions ago'
                    || COALESCE(', since ' || saga.report_time(v.horizon_since), '')
                    || COALESCE(', of ' || saga.report_text(NULLIF(concat_ws(' ', v.horizon_holder, v.horizon_pid, v.horizon_name,
                           'role ' || v.horizon_role, v.horizon_application), ''), 200), '')),
            (5, 'Oldest saga that is kept', saga.report_time(v.oldest_kept))) e(n, name, html)
        WHERE e.html <> '' AND (e.n <> 2 OR v.oldest_due_id IS NOT NULL);
        html := html || '<dl class="facts">' || COALESCE(rows, '') || '</dl>';
    END IF;
    SELECT string_agg(x.html, '') INTO rows
    FROM (
        SELECT format('<tr><th scope="row">%s</th><td>%s</td><td>%s</td>', saga.report_text(w.process),
                   saga.report_text(COALESCE(w.database, '')), saga.report_text(COALESCE(w.role, '')))
               || saga.report_cell(w.pid::text, w.pid)
               || format('<td>%s</td><td class="wide">%s</td>',
                   saga.report_pill(COALESCE(w.state, ''), CASE w.state WHEN 'absent' THEN 'failed' WHEN 'running' THEN 'running' ELSE 'skipped' END),
                   saga.report_text(concat_ws(': ', w.reason, CASE WHEN w.step IS NOT NULL
                       THEN format('%s of %s, saga %s', w.operation, w.step, w.saga_id) END)))
               || saga.report_since(w.since, now) || '</tr>' AS html
        FROM saga.workers w ORDER BY w.state = 'absent' DESC, w.process, w.role, w.pid LIMIT $1) x;
    html := html || COALESCE(saga.report_table('t-workers', 'Processes, and those that are missing',
        '{Process,Database,Role,n:Pid,State,wide:What it does or why it is missing,t:Since}', rows), '');
    SELECT string_agg(x.html, '') INTO rows
    FROM (
        SELECT format('<tr><th scope="row">%s</th><td>%s</td>', saga.report_text(q.queue), saga.report_text(q.owner))
               || saga.report_cell(saga.report_count(q.ready), q.ready) || saga.report_since(q.oldest_ready, now)
               || saga.report_cell(saga.report_count(q.claimed), q.claimed)
               || saga.report_cell(saga.report_count(q.participants), q.participants)
               || saga.report_cell(saga.report_rate(q.rate * 60), q.rate)
               || saga.report_cell(saga.report_count(q.failed), q.failed)
               || saga.report_cell(saga.report_count(q.expired), q.expired)
               || format('<td>%s</td></tr>', CASE WHEN q.paused THEN saga.report_pill('paused', 'waiting') ELSE
                   saga.report_pill(COALESCE(q.breaker, ''), CASE q.breaker WHEN 'closed' THEN 'succeeded' WHEN 'open' THEN 'failed' ELSE 'waiting' END) END) AS html
        FROM saga.queues q ORDER BY q.breaker <> 'closed' DESC, q.ready DESC, q.queue LIMIT $1) x;
    html := html || COALESCE('<h3>Queues</h3>' || saga.report_table('t-queues', 'Tasks for programs outside',
        '{Queue,Owner,n:Ready,t:Oldest ready,n:Claimed,n:Participants,n:Per minute,n:Failed,n:Expired,Breaker}', rows), '');
    SELECT string_agg(x.html, '') INTO rows
    FROM (
        SELECT format('<tr><th scope="row">%s</th><td>%s</td><td>%s</td>', saga.report_text(s.server), saga.report_text(s.role),
                   saga.report_pill(s.state, CASE s.state WHEN 'pausing' THEN 'failed' WHEN 'paused' THEN 'waiting' ELSE 'skipped' END))
               || saga.report_cell(saga.report_count(s.ready), s.ready) || saga.report_since(s.oldest_ready, now)
               || saga.report_cell(saga.report_count(s.in_flight), s.in_flight)
               || saga.report_cell(saga.report_count(s.calls), s.calls)
               || saga.report_cell(saga.report_count(s.failed), s.failed)
               || saga.report_cell(saga.report_count(s.lost), s.lost)
               || saga.report_duration(extract(epoch FROM s.latency_p50)::double precision)
               || saga.report_duration(extract(epoch FROM s.latency_p99)::double precision)
               || format('<td>%s</td><td class="wide">%s</td></tr>',
                   saga.report_pill(COALESCE(s.breaker, ''), CASE s.breaker WHEN 'closed' THEN 'succeeded' WHEN 'open' THEN 'failed' ELSE 'waiting' END),
                   COALESCE(saga.report_text(s.last_error, 300), '')) AS html
        FROM saga.servers s ORDER BY s.breaker <> 'closed' DESC, s.ready DESC, s.server, s.role LIMIT $1) x;
    RETURN html || COALESCE('<h3>Other databases</h3>' || saga.report_table('t-servers', 'Foreign servers at which steps are done',
        '{Server,Role,State,n:Ready,t:Oldest ready,n:In flight,n:Calls,n:Failed,n:Lost,n:p50,n:p99,Breaker,wide:Last error}', rows), '');
END
$$;
COMMENT ON FUNCTION saga.report_server(integer) IS 'a section of saga.report(): what the sagas stand on';

CREATE FUNCTION saga.report_gantt(saga_id bigint, begins timestamptz, ends timestamptz, final boolean) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    span    constant double precision := GREATEST(extract(epoch FROM ends - begins), 0.000001);
    grid    constant text := '<path class="grid" d="M0 0V18"/><line class="grid" x1="25%" x2="25%" y2="18"/><line class="grid" x1="50%" x2="50%" y2="18"/><line class="grid" x1="75%" x2="75%" y2="18"/><line class="grid" x1="100%" x2="100%" y2="18"/>';
    r       record;
    bars    text;
    class   text;
    rows    text := '';
    n       integer := 0;
BEGIN
    FOR r IN SELECT * FROM saga.timeline_rows($1) LIMIT 301 LOOP
        n := n + 1;
        EXIT WHEN n > 300;
        bars := grid;
        IF r.started_at IS NOT NULL THEN
            class := CASE WHEN (r.kind <> 'local' AND r.operation = 'action') OR r.kind IN ('external', 'remote', 'child') THEN 'others'
                          WHEN r.attempts > 1 OR r.status = 'waiting' OR r.failed_from IS NOT NULL THEN 'pause'
                          WHEN r.goes_on THEN 'now'
                          WHEN r.operation = 'compensation' THEN 'undo' ELSE 'work' END;
            bars := bars || saga.report_bar(class, begins, span, r.started_at,
                CASE WHEN r.goes_on THEN ends ELSE COALESCE(r.finished_at, r.started_at) END);
            FOR i IN 1 .. COALESCE(cardinality(r.failed_from), 0) LOOP
                bars := bars || saga.report_bar('wrong', begins, span, r.failed_from[i], r.failed_to[i]);
            END LOOP;
            IF r.status = 'running' AND class = 'pause' THEN
                bars := bars || saga.report_bar('now', begins, span,
                    COALESCE(r.failed_to[cardinality(r.failed_to)], r.started_at), ends);
            ELSIF r.status = 'succeeded' AND class = 'pause' THEN
                -- of the attempt that succeeded only its end is known
                bars := bars || saga.report_bar(CASE r.operation WHEN 'compensation' THEN 'undo' ELSE 'work' END,
                    begins, span, r.finished_at, r.finished_at);
            END IF;
        END IF;
        rows := rows || format('<tr><th scope="row">%s</th><td class="when"><svg aria-hidden="true">%s</svg></td>',
                saga.report_text(r.label), bars)
            || saga.report_cell(CASE WHEN r.started_at IS NOT NULL AND r.status <> 'skipped' THEN saga.time_text(extract(epoch FROM
                       CASE WHEN r.goes_on THEN ends ELSE r.finished_at END - r.started_at)::double precision) END,
                   extract(epoch FROM r.started_at)::double precision)
            || format('<td class="n">%s</td><td>%s</td><td class="wide">%s</td></tr>',
                   CASE WHEN r.attempts > 0 THEN saga.report_count(r.attempts) ELSE '' END,
                   saga.report_pill(r.status, r.status),
                   concat_ws('<br>', saga.report_text(r.detail), saga.report_text(r.error, 500)));
    END LOOP;
    FOR r IN SELECT x.verb, x.requested_by, x.requested_at, x.reason, x.outcome FROM saga.requests x
             WHERE x.saga_id = $1 ORDER BY x.id LIMIT 100 LOOP
        rows := rows || format('<tr><th scope="row">%s</th><td class="when"><svg aria-hidden="true">%s<line class="asked" x1="%s%%" x2="%s%%" y1="2" y2="16"/></svg></td>'
                '<td class="n"></td><td class="n"></td><td>%s</td><td class="wide">%s</td></tr>',
            saga.report_text(r.verb), grid, saga.report_share(begins, span, r.requested_at), saga.report_share(begins, span, r.requested_at),
            saga.report_pill(CASE WHEN r.outcome LIKE 'refused%' THEN 'refused' ELSE r.outcome END,
                CASE WHEN r.outcome = 'done' THEN 'succeeded' WHEN r.outcome = 'pending' THEN 'waiting' ELSE 'failed' END),
            saga.report_text(concat_ws(': ', 'by ' || r.requested_by, NULLIF(r.reason, ''),
                CASE WHEN r.outcome LIKE 'refused%' THEN r.outcome END), 500));
    END LOOP;
    RETURN format('<div class="scroll" role="region" aria-label="When what ran in saga %s" tabindex="0"><table class="gantt">'
        '<thead><tr><th scope="col">Operation</th><th scope="col" class="when"><svg class="axis" role="img" aria-label="%s">'
        '<text x="0" y="13">0</text><text x="50%%" y="13" text-anchor="middle">%s</text><text x="100%%" y="13" text-anchor="end">%s</text></svg></th>'
        '<th scope="col" class="n">Took</th><th scope="col" class="n">Attempts</th><th scope="col">State</th><th scope="col" class="wide">Remarks</th></tr></thead>'
        '<tbody>%s</tbody></table><ul class="key"><li>%s at work</li><li>%s compensation</li><li>%s waits for others</li><li>%s until the next attempt</li>'
        '<li>%s failed attempt</li><li>%s just now</li><li>| asked by a person</li></ul></div>%s',
        $1, saga.escape('Time, from the beginning to ' || CASE WHEN final THEN 'the end' ELSE 'now' END || ': ' || saga.time_text(span), 'html'),
        saga.time_text(span / 2), saga.time_text(span), rows,
        saga.report_key('work'), saga.report_key('undo'), saga.report_key('others'), saga.report_key('pause'),
        saga.report_key('wrong'), saga.report_key('now'),
        CASE WHEN n > 300 THEN '<p class="muted">And more: see <code>saga.steps</code>.</p>' ELSE '' END);
END
$$;
COMMENT ON FUNCTION saga.report_gantt(bigint, timestamptz, timestamptz, boolean) IS 'for saga.report(): when what ran in a saga';

CREATE FUNCTION saga.report_key(class text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT format('<svg aria-hidden="true"><rect class="%s" y="%s" width="16" height="%s" rx="1.5"/></svg>', $1,
        CASE WHEN $1 = 'pause' THEN 5 WHEN $1 = 'others' THEN 3 ELSE 0 END,
        CASE WHEN $1 = 'pause' THEN 2 WHEN $1 = 'others' THEN 6 ELSE 12 END)
$$;
COMMENT ON FUNCTION saga.report_key(text) IS 'for saga.report(): what a colour means';

CREATE FUNCTION saga.report_share(begins timestamptz, span double precision, at timestamptz) RETURNS numeric
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    SELECT round(LEAST(99.5, GREATEST(0, 100 * extract(epoch FROM $3 - $1)::double precision / $2))::numeric, 2)
$$;
COMMENT ON FUNCTION saga.report_share(timestamptz, double precision, timestamptz) IS 'for saga.report(): where a time is, in percent';

CREATE FUNCTION saga.report_bar(class text, begins timestamptz, span double precision, started_at timestamptz, finished_at timestamptz)
RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp
AS $$
    -- two: one that is to scale, and one that can be seen however short it was
    SELECT format('<rect class="%1$s" x="%2$s%%" y="%4$s" width="%3$s%%" height="%5$s" rx="1.5"/><rect class="%1$s" x="%2$s%%" y="%4$s" width="2.5" height="%5$s"/>',
        $1, a.at, LEAST(100 - a.at, GREATEST(0, round((100 * extract(epoch FROM $5 - $4)::double precision / $3)::numeric, 2))),
        CASE WHEN $1 = 'pause' THEN 8 WHEN $1 = 'others' THEN 6 ELSE 3 END,
        CASE WHEN $1 = 'pause' THEN 2 WHEN $1 = 'others' THEN 6 ELSE 12 END)
    FROM (SELECT saga.report_share($2, $3, $4) AS at) a
$$;
COMMENT ON FUNCTION saga.report_bar(text, timestamptz, double precision, timestamptz, timestamptz) IS 'for saga.report(): a span of time';

CREATE FUNCTION saga.report_saga(saga_id bigint) RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
AS $$
#variable_conflict use_column
DECLARE
    picture constant jsonb := saga.picture($1);
    s       record;
    svg     constant text := saga.picture_svg(picture);
    waits   text;
BEGIN
    SELECT x.*, LEAST(x.created_at, x.started_at) AS begins,
           GREATEST(COALESCE(x.finished_at, clock_timestamp()), x.created_at) AS ends
    INTO s FROM (SELECT y.definition, y.version, y.key, y.status, y.owner, y.error, y.created_at, y.started_at,
                        y.finished_at, y.deadline, y.parent_id, y.remote_parent_id
                 FROM saga.sagas y WHERE y.saga_id = $1) x;
    IF s.finished_at IS NULL THEN
        SELECT string_agg('<li>' || saga.report_text(e.topic || ': ' || e.detail, 500) || '</li>', '')
        INTO waits FROM (SELECT * FROM saga.explain($1) x
                         WHERE x.topic IN ('waits for', 'no worker', 'lock', 'place') LIMIT 20) e;
    END IF;
    RETURN format('<article id="saga-%s" aria-labelledby="h-saga-%s"><header><h3 id="h-saga-%s">Saga %s of %s</h3>%s</header>',
            $1, $1, $1, $1, saga.report_text(COALESCE(s.definition, 'an unknown definition')),
            saga.report_pill(s.status::text, saga.picture_status_class(s.status::text)))
        || format('<dl class="facts">%s<div><dt>Version</dt><dd>%s</dd></div><div><dt>Role</dt><dd>%s</dd></div>'
            '<div><dt>Begun</dt><dd>%s</dd></div><div><dt>%s</dt><dd>%s</dd></div>%s%s</dl>',
            COALESCE('<div><dt>Key</dt><dd>' || saga.report_text(s.key, 200) || '</dd></div>', ''), s.version, saga.report_text(s.owner),
            saga.report_time(s.created_at), CASE WHEN s.finished_at IS NULL THEN 'Lasts' ELSE 'Took' END,
            saga.time_text(extract(epoch FROM s.ends - s.begins)::double precision),
            COALESCE('<div><dt>Deadline</dt><dd>' || saga.report_time(s.deadline) || '</dd></div>', ''),
            COALESCE('<div><dt>Parent</dt><dd>saga ' || COALESCE(s.parent_id::text, s.remote_parent_id || ' of another database') || '</dd></div>', ''))
        || COALESCE('<p class="cause"><b>First cause:</b> ' || saga.report_error(s.error) || '</p>', '')
        || COALESCE('<ul class="plain">' || waits || '</ul>', '')
        || '<div class="two">'
        || COALESCE(format('<div class="picture" role="region" aria-label="Graph of saga %s" tabindex="0">', $1) || svg || '</div>',
                    saga.report_none('It has more than 150 steps, or cannot be read: see <code>saga.diagram()</code>.'))
        || saga.report_gantt($1, s.begins, s.ends, s.finished_at IS NOT NULL) || '</div></article>';
END
$$;
COMMENT ON FUNCTION saga.report_saga(bigint) IS 'a section of saga.report(): a saga, as a graph and in time';

CREATE FUNCTION saga.report(
    sagas bigint[] DEFAULT NULL,
    definition text DEFAULT NULL,
    max_rows integer DEFAULT 200)
RETURNS text
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp SET jit = off
SET datestyle = iso SET intervalstyle = postgres
AS $$
#variable_conflict use_column
DECLARE
    drawn   bigint[] := $1;
    id      bigint;
    picture jsonb;
    html    text;
    body    text;
    head    text;
    style   constant text := saga.report_style();
    script  constant text := saga.report_script();
BEGIN
    IF max_rows IS NULL OR max_rows NOT BETWEEN 1 AND 10000 THEN
        RAISE EXCEPTION 'max_rows must be from 1 to 10000'
            USING ERRCODE = 'invalid_parameter_value';
    ELSIF cardinality($1) > 50 OR array_ndims($1) > 1 OR EXISTS (SELECT FROM unnest($1) d(id) WHERE d.id IS NULL) THEN
        RAISE EXCEPTION 'a report has at most 50 sagas, in an array of one dimension, and their ids must not be null'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF $2 IS NOT NULL THEN
        picture := saga.picture($2, NULL);
    END IF;
    IF drawn IS NULL THEN
        -- what is stuck first, then what has not ended for the longest time
        SELECT array_agg(x.saga_id ORDER BY x.stuck DESC, x.saga_id) INTO drawn
        FROM (SELECT y.saga_id, y.stuck
              FROM ((SELECT s.saga_id, true AS stuck FROM saga.stuck s
                     WHERE $2 IS NULL OR s.definition = $2 ORDER BY s.saga_id LIMIT 3)
                    UNION ALL
                    (SELECT s.saga_id, false FROM saga.alive s
                     WHERE s.status <> 'stuck' AND ($2 IS NULL OR s.definition = $2) ORDER BY s.saga_id LIMIT 5)) y
              ORDER BY y.stuck DESC, y.saga_id LIMIT 5) x;
    END IF;
    SELECT array_agg(x.id ORDER BY x.n) INTO drawn
    FROM (SELECT d.id, min(d.n) AS n FROM unnest(drawn) WITH ORDINALITY d(id, n) GROUP BY d.id) x;
    SELECT d.id INTO id FROM unnest(drawn) d(id)
    WHERE NOT EXISTS (SELECT FROM saga.sagas s WHERE s.saga_id = d.id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'saga % does not exist', id
            USING ERRCODE = 'undefined_object',
                  HINT = 'View saga.sagas has those that you may see.';
    END IF;

    head := format('<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src &#39;none&#39;; '
        'style-src &#39;sha256-%s&#39;; script-src &#39;sha256-%s&#39;; base-uri &#39;none&#39;; form-action &#39;none&#39;">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="referrer" content="no-referrer">'
        '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex"><title>Sagas of %s</title>',
        encode(sha256(convert_to(style, 'UTF8')), 'base64'), encode(sha256(convert_to(script, 'UTF8')), 'base64'),
        saga.escape(concat_ws(', ', current_database(), $2), 'html'));
    body := format('<a class="skip" href="#main">To the content</a>'
        '<header><div><h1>Sagas of %s</h1><p class="muted">%s, as seen by role %s, %s. Times are those of %s.</p></div>'
        '<button type="button" class="theme" hidden>Theme: automatic</button></header>'
        '<nav aria-label="Sections"><ul><li><a href="#overview">Overview</a></li><li><a href="#alerts">Alerts</a></li>'
        '<li><a href="#health">Health</a></li><li><a href="#stuck">Stuck</a></li><li><a href="#steps">Slowest steps</a></li>%s'
        '<li><a href="#sagas">Sagas</a> <span class="count">%s</span></li><li><a href="#server">Server</a></li></ul></nav>'
        '<main id="main" tabindex="-1">',
        saga.report_text(concat_ws(', definition ', current_database(), $2)),
        saga.report_time(clock_timestamp()), saga.report_text(current_user),
        CASE WHEN saga.sees_all() THEN 'who sees the sagas of all roles' ELSE 'who sees the sagas of its own roles' END,
        saga.escape(current_setting('TimeZone'), 'html'),
        CASE WHEN picture IS NULL THEN '' ELSE '<li><a href="#definition">Definition</a></li>' END,
        COALESCE(cardinality(drawn), 0));
    body := body || saga.report_overview($2);
    body := body || saga.report_section('alerts', 'Alerts', saga.report_alerts($2, max_rows));
    body := body || '<fieldset class="switch"><legend>Rates and durations of</legend>'
        '<span class="one"><input type="radio" name="window" class="choice" id="w1m"><label for="w1m">the last minute</label></span> '
        '<span class="one"><input type="radio" name="window" class="choice" id="w1h" checked><label for="w1h">the last hour</label></span> '
        '<span class="one"><input type="radio" name="window" class="choice" id="w1d"><label for="w1d">the last day</label></span></fieldset>';
    body := body || saga.report_section('health', 'Health', saga.report_health($2, max_rows));
    body := body || saga.report_section('stuck', 'Stuck sagas', saga.report_stuck($2, max_rows, drawn));
    body := body || saga.report_section('steps', 'Slowest steps', saga.report_steps($2, max_rows));
    IF picture IS NOT NULL THEN
        body := body || saga.report_section('definition',
            format('Definition %s, version %s', saga.report_text($2), picture ->> 'version'),
            COALESCE('<div class="picture scroll" role="region" aria-label="Graph of the definition" tabindex="0">'
                         || saga.picture_svg(picture) || '</div>',
                     saga.report_none('It has more than 150 steps: see <code>saga.diagram()</code>.')));
    END IF;
    html := '';
    FOREACH id IN ARRAY COALESCE(drawn, '{}') LOOP
        html := html || saga.report_saga(id);
    END LOOP;
    body := body || saga.report_section('sagas', 'Sagas', COALESCE(NULLIF(html, ''),
        saga.report_none('None was chosen: <code>saga.report(ARRAY[4711])</code>.')));
    body := body || saga.report_section('server', 'Server', saga.report_server(max_rows));
    body := body || format('</main><footer>saga %s, PostgreSQL %s. Inputs and results of sagas are not part of this page; texts of errors are.</footer>'
        '<svg class="defs" aria-hidden="true"><defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8Z"/></marker></defs></svg>',
        saga.escape((SELECT e.extversion FROM pg_extension e WHERE e.extname = 'saga'), 'html'),
        saga.escape(current_setting('server_version'), 'html'));
    RETURN '<!DOCTYPE html>' || E'\n' || '<html lang="en"><head>' || head || '<style>' || style || '</style></head><body>'
        || body || '<script>' || script || '</script></body></html>';
END
$$;
COMMENT ON FUNCTION saga.report(bigint[], text, integer) IS
    'how the sagas of this database are, as one page of HTML that needs nothing else: psql -Atc ''SELECT saga.report()'' > saga.html. With graph and timeline of the sagas that are given, or of those that are stuck and the oldest others; of one definition, if it is given; with at most max_rows rows in each table. It shows what the caller may see, without inputs and results';

------------------------------------------------------------------------------
-- Privileges
--
-- Nothing is granted to PUBLIC.  The doors are functions, for the owner of the
-- extension: saga.grant_usage() for applications, saga.grant_monitor() for
-- looking at everything, saga.grant_operator() for the verbs on everything,
-- saga.grant_remote() for sagas of other databases; and for owners of queues:
-- saga.grant_participant().
------------------------------------------------------------------------------

CREATE FUNCTION saga.grant_pictures(role name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format(
        'GRANT EXECUTE ON ROUTINE saga.diagram(text, text, integer), saga.diagram(bigint, text), saga.timeline,'
        ' saga.report, saga.escape, saga.time_text, saga.picture(text, integer),'
        ' saga.picture(bigint), saga.picture_function, saga.picture_lines,'
        ' saga.picture_edges, saga.picture_class, saga.picture_status_class,'
        ' saga.picture_title, saga.picture_mermaid, saga.picture_colours,'
        ' saga.picture_dot, saga.picture_write, saga.timeline_rows, saga.timeline_bar,'
        ' saga.picture_svg, saga.cut_text, saga.report_style, saga.report_script,'
        ' saga.report_text, saga.report_count, saga.report_rate, saga.report_time,'
        ' saga.report_cell, saga.report_duration, saga.report_since, saga.report_pill,'
        ' saga.report_table, saga.report_none, saga.report_may, saga.report_overview,'
        ' saga.report_section, saga.report_alerts, saga.report_health, saga.report_window,'
        ' saga.report_stuck, saga.report_error, saga.report_steps,'
        ' saga.report_step_window, saga.report_server, saga.report_gantt,'
        ' saga.report_key, saga.report_share, saga.report_bar, saga.report_saga TO %I', role);
END
$$;
COMMENT ON FUNCTION saga.grant_pictures(name) IS
    'what saga.grant_usage() and saga.grant_monitor() grant of the pictures, which run as their caller';

CREATE FUNCTION saga.grant_schedules(role name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT SELECT ON saga.schedules TO %I', role);
    EXECUTE format(
        'GRANT EXECUTE ON ROUTINE saga.schedule_recovery, saga.schedule_retention,'
        ' saga.schedule_reconciliation, saga.unschedule, saga.cron_database, saga.job_name,'
        ' saga.forget_runs_command, saga.check_cron, saga.check_job_role, saga.schedule_raw,'
        ' saga.unschedule_raw, saga.schedules_raw TO %I', role);
END
$$;
COMMENT ON FUNCTION saga.grant_schedules(name) IS
    'what saga.grant_usage() and saga.grant_operator() grant of the schedules, which are made with the rights of the caller';

CREATE FUNCTION saga.grant_usage(role name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA saga TO %I', role);
    EXECUTE format(
        'GRANT USAGE ON TYPE saga.saga_status, saga.operation, saga.operation_status TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON saga.definitions, saga.definition_steps, saga.sagas,'
        ' saga.invariants, saga.violations, saga.alerts,'
        ' saga.alive, saga.ended, saga.messages, saga.roles, saga.health, saga.step_health,'
        ' saga.steps, saga.attempts, saga.requests, saga.stuck, saga.locks, saga.queues,'
        ' saga.servers, saga.tasks, saga.participants, saga.spans, saga.workers TO %I', role);
    EXECUTE format(
        'GRANT EXECUTE ON ROUTINE saga.retry_policy, saga.step, saga.timer_step,'
        ' saga.sees_health, saga.oldest_raw, saga.roles_raw, saga.result_raw,'
        ' saga.signal_step, saga.child_step, saga.external_step, saga.remote_step, saga.define,'
        ' saga.impact,'
        ' saga.add_invariant, saga.drop_invariant, saga.check_invariant, saga.check_invariants,'
        ' saga.configure, saga.drop_definition, saga.grant_begin, saga.revoke_begin,'
        ' saga.begin, saga.signal(bigint, text, jsonb, text),'
        ' saga.signal(text, text, text, jsonb, text), saga.lock(text, interval),'
        ' saga.cancel, saga.pause, saga.resume, saga.retry, saga.skip,'
        ' saga.abandon, saga.migrate, saga.wait, saga.wait_within, saga.run, saga.recover,'
        ' saga.retry_later, saga.fail(text, text), saga.fail(text, jsonb),'
        ' saga.create_queue, saga.drop_queue, saga.configure_queue, saga.reset_breaker,'
        ' saga.configure_server, saga.check_server,'
        ' saga.grant_participant, saga.revoke_participant, saga.grant_offer,'
        ' saga.revoke_offer, saga.claim_tasks, saga.complete_task, saga.complete_tasks,'
        ' saga.fail_task, saga.fail_tasks, saga.extend_lease, saga.extend_leases,'
        ' saga.release_task, saga.release_tasks,'
        ' saga.sees_all, saga.workers_raw, saga.rounds_raw, saga.queues_raw,'
        ' saga.participants_raw, saga.servers_raw, saga.server_waits_raw, saga.explain_raw,'
        ' saga.health_raw, saga.step_health_raw,'
        ' saga.explain_tree, saga.explain_pause, saga.trace_raw, saga.span_raw, saga.result,'
        ' saga.explain, saga.export TO %I', role);
    PERFORM saga.grant_pictures(role);
    PERFORM saga.grant_schedules(role);
END
$$;
COMMENT ON FUNCTION saga.grant_usage(name) IS
    'let a role define and begin sagas, see and steer its own, and have queues and be a participant of them';

CREATE FUNCTION saga.grant_monitor(role name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA saga TO %I', role);
    EXECUTE format(
        'GRANT USAGE ON TYPE saga.saga_status, saga.operation, saga.operation_status TO %I', role);
    EXECUTE format(
        'GRANT SELECT ON saga.definitions, saga.definition_steps, saga.sagas,'
        ' saga.invariants, saga.violations, saga.alerts,'
        ' saga.alive, saga.ended, saga.messages, saga.roles, saga.health, saga.step_health,'
        ' saga.vitals,'
        ' saga.steps, saga.attempts, saga.requests, saga.stuck, saga.locks, saga.queues,'
        ' saga.servers, saga.tasks, saga.participants, saga.barriers, saga.spans, saga.workers,'
        ' saga.metrics, saga.storage TO %I', role);
    EXECUTE format(
        'GRANT EXECUTE ON ROUTINE saga.monitor_privilege, saga.sees_all,'
        ' saga.sees_health, saga.oldest_raw, saga.roles_raw, saga.horizon_raw,'
        ' saga.result_raw,'
        ' saga.metrics_raw, saga.workers_raw, saga.rounds_raw, saga.queues_raw, saga.participants_raw,'
        ' saga.servers_raw, saga.server_waits_raw, saga.explain_raw, saga.explain_tree,'
        ' saga.health_raw, saga.step_health_raw,'
        ' saga.explain_pause, saga.trace_raw, saga.span_raw, saga.result, saga.explain,'
        ' saga.export, saga.impact, saga.step,'
        ' saga.timer_step, saga.signal_step, saga.child_step, saga.external_step, saga.remote_step,'
        ' saga.retry_policy,'
        ' saga.wait, saga.wait_within TO %I', role);
    PERFORM saga.grant_pictures(role);
END
$$;
COMMENT ON FUNCTION saga.grant_monitor(name) IS
    'let a role see the sagas and the queues of all roles';

CREATE FUNCTION saga.grant_operator(role name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    PERFORM saga.grant_monitor(role);
    PERFORM saga.grant_schedules(role);
    EXECUTE format(
        'GRANT EXECUTE ON ROUTINE saga.operator_privilege,'
        ' saga.check_invariant, saga.check_invariants,'
        ' saga.signal(bigint, text, jsonb, text), saga.signal(text, text, text, jsonb, text),'
        ' saga.cancel, saga.pause, saga.resume, saga.retry, saga.skip, saga.abandon,'
        ' saga.migrate, saga.configure_queue, saga.configure_server, saga.reset_breaker,'
        ' saga.reset_statistics, saga.recover, saga.retain TO %I', role);
END
$$;
COMMENT ON FUNCTION saga.grant_operator(name) IS
    'let a role see the sagas and the queues of all roles, signal, cancel, pause, resume, retry, skip, abandon and migrate the ones, and pause the others and reset their breakers, and have old sagas removed';

CREATE FUNCTION saga.grant_remote(role name) RETURNS void
LANGUAGE plpgsql VOLATILE
SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    EXECUTE format('GRANT USAGE ON SCHEMA saga TO %I', role);
    EXECUTE format('GRANT SELECT ON saga.barriers TO %I', role);
    EXECUTE format(
        'GRANT EXECUTE ON ROUTINE saga.participate, saga.settle, saga.forget_barriers, saga.sees_all,'
        ' saga.participate_child, saga.follow_children,'
        ' saga.fail(text, text), saga.fail(text, jsonb), saga.retry_later,'
        ' saga.lock(text, interval) TO %I', role);
END
$$;
COMMENT ON FUNCTION saga.grant_remote(name) IS
    'let sagas of other databases that connect as this role have their steps done here, each once; what the role may call is a matter of its own privileges';

REVOKE ALL ON TYPE saga.saga_status, saga.operation, saga.operation_status FROM PUBLIC;
REVOKE ALL ON ALL TABLES IN SCHEMA saga FROM PUBLIC;
REVOKE ALL ON ALL SEQUENCES IN SCHEMA saga FROM PUBLIC;
REVOKE ALL ON ALL ROUTINES IN SCHEMA saga FROM PUBLIC;

-- Numbers, and nothing of what sagas carry, for those who watch the server.
GRANT USAGE ON SCHEMA saga TO pg_monitor;
GRANT SELECT ON saga.health, saga.step_health, saga.vitals, saga.roles, saga.workers,
    saga.queues, saga.servers, saga.participants TO pg_monitor;
GRANT EXECUTE ON FUNCTION saga.sees_health, saga.health_raw, saga.step_health_raw,
    saga.oldest_raw, saga.roles_raw, saga.horizon_raw, saga.workers_raw, saga.queues_raw,
    saga.participants_raw, saga.servers_raw TO pg_monitor;
GRANT SELECT ON saga.metrics, saga.storage TO pg_monitor;
GRANT SELECT ON saga.invariants, saga.alerts TO pg_monitor;
GRANT EXECUTE ON FUNCTION saga.metrics_raw(text, text) TO pg_monitor;

------------------------------------------------------------------------------
-- Is there anybody to run sagas?
------------------------------------------------------------------------------

DO $$
BEGIN
    IF EXISTS (SELECT FROM saga.workers_raw() w
               WHERE w.process = 'launcher'
                 AND w.reason = 'saga is not loaded via shared_preload_libraries') THEN
        RAISE WARNING 'saga is not loaded via "shared_preload_libraries"'
            USING DETAIL = 'No background worker advances sagas.',
                  HINT = 'Add saga to shared_preload_libraries and restart the server; until then use CALL saga.recover() or CALL saga.run().';
    END IF;
END
$$;
