-- What a turn does before its commit, what is kept of it afterwards, and actions that wait for a person's word. The same
-- tables, columns and rules as migrations/postgres/0003_brain.sql.

-- The steps of turns that have not ended: written one by one, each before it matters, removed by the turn's commit. No row of
-- the ledger exists yet, so there is nothing to refer to.
CREATE TABLE turn_journal (
    turn_id TEXT NOT NULL,
    step TEXT NOT NULL,
    ordinal INTEGER NOT NULL CHECK (ordinal >= 0),
    kind TEXT NOT NULL CHECK (kind IN ('model', 'tool', 'step')),
    status TEXT NOT NULL CHECK (status IN ('started', 'done', 'failed', 'unknown')),
    request_hash TEXT NOT NULL,
    request TEXT,
    result TEXT,
    started_at INTEGER NOT NULL,
    ended_at INTEGER,
    PRIMARY KEY (turn_id, step)
) STRICT;

-- What replay and people need of a turn that has ended: its steps with what was asked and answered.
CREATE TABLE turn_records (
    turn_id TEXT PRIMARY KEY NOT NULL REFERENCES turns (id),
    record TEXT NOT NULL
) STRICT;

-- Tool calls that wait for a yes. The id is the nonce that a button carries.
CREATE TABLE pending_actions (
    id TEXT PRIMARY KEY NOT NULL,
    conversation_id TEXT NOT NULL REFERENCES conversations (id),
    turn_id TEXT NOT NULL REFERENCES turns (id),
    requester TEXT,
    tool TEXT NOT NULL,
    arguments TEXT NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('pending', 'approved', 'rejected', 'expired', 'cancelled')),
    decided_turn_id TEXT,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    decided_at INTEGER
) STRICT;

CREATE INDEX pending_actions_by_conversation ON pending_actions (conversation_id, created_at, id);
