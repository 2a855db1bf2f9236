-- What people did to the deployment by hand, and why. The same table and columns as
-- migrations/sqlite/0005_operator_actions.sql.

-- One row per thing done to one thing, written before it cannot be undone any more; doing it again after a crash writes
-- another row. No check on the verb: later versions add words, and earlier ones keep running beside them.
CREATE TABLE operator_actions (
    id UUID PRIMARY KEY,
    verb TEXT NOT NULL,
    -- What it was done to: of a dead letter, its message's id.
    target TEXT NOT NULL,
    -- Who, as far as the program that was used can tell.
    actor TEXT,
    reason TEXT,
    created_at TIMESTAMPTZ NOT NULL
);

CREATE INDEX operator_actions_by_target ON operator_actions (target, created_at);
