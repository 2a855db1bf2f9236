-- What a turn does before its commit, what is kept of it afterwards, and actions that wait for a person's word. The same
-- tables, columns and rules as migrations/sqlite/0003_brain.sql.

-- The steps of turns that have not ended: written one by one, each before it matters, removed by the turn's commit. No row of
-- the ledger exists yet, so there is nothing to refer to.
CREATE TABLE turn_journal (
    turn_id UUID NOT NULL,
    step TEXT NOT NULL,
    ordinal BIGINT NOT NULL CHECK (ordinal >= 0),
    kind TEXT NOT NULL CHECK (kind IN ('model', 'tool', 'step')),
    status TEXT NOT NULL CHECK (status IN ('started', 'done', 'failed', 'unknown')),
    request_hash TEXT NOT NULL,
    request JSONB,
    result JSONB,
    started_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    PRIMARY KEY (turn_id, step)
);

-- What replay and people need of a turn that has ended: its steps with what was asked and answered.
CREATE TABLE turn_records (
    turn_id UUID PRIMARY KEY REFERENCES turns (id),
    record JSONB NOT NULL
);

-- Tool calls that wait for a yes. The id is the nonce that a button carries.
CREATE TABLE pending_actions (
    id TEXT PRIMARY KEY,
    conversation_id UUID NOT NULL REFERENCES conversations (id),
    turn_id UUID NOT NULL REFERENCES turns (id),
    requester TEXT,
    tool TEXT NOT NULL,
    arguments TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'rejected', 'expired', 'cancelled')),
    decided_turn_id UUID,
    created_at TIMESTAMPTZ NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    decided_at TIMESTAMPTZ
);

CREATE INDEX pending_actions_by_conversation ON pending_actions (conversation_id, created_at, id);
