-- The first schema. The same tables, columns and rules as migrations/postgres/0001_initial.sql; identifiers are UUIDs as text,
-- moments are microseconds since 1970-01-01T00:00:00Z, documents are JSON as text.

-- One row per incarnation of a JetStream stream: a stream deleted and made again is another one.
CREATE TABLE streams (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    incarnation TEXT NOT NULL,
    UNIQUE (name, incarnation)
) STRICT;

-- Who may commit for a partition (epoch), and up to where everything is terminal (checkpoint).
CREATE TABLE partitions (
    stream INTEGER NOT NULL REFERENCES streams (id),
    partition INTEGER NOT NULL CHECK (partition BETWEEN 0 AND 65535),
    epoch INTEGER NOT NULL CHECK (epoch >= 0),
    checkpoint INTEGER CHECK (checkpoint >= 0),
    PRIMARY KEY (stream, partition)
) STRICT;

CREATE TABLE conversations (
    id TEXT PRIMARY KEY NOT NULL,
    channel TEXT NOT NULL CHECK (channel IN ('telegram', 'messenger', 'web')),
    bot TEXT NOT NULL,
    peer TEXT NOT NULL,
    platform TEXT NOT NULL CHECK (platform IN ('telegram', 'messenger', 'web', 'api')),
    device_id TEXT,
    status TEXT NOT NULL CHECK (status IN ('bot', 'human', 'closed')),
    assignee TEXT,
    snippet TEXT,
    last_message_at INTEGER,
    message_count INTEGER NOT NULL CHECK (message_count >= 0),
    metadata TEXT NOT NULL CHECK (json_type(metadata) = 'object'),
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX conversations_open ON conversations (channel, bot, peer) WHERE status <> 'closed';
CREATE INDEX conversations_by_activity ON conversations (updated_at DESC, id DESC);
CREATE INDEX conversations_by_bot ON conversations (bot, updated_at DESC, id DESC);
CREATE INDEX conversations_by_device ON conversations (device_id, updated_at DESC, id DESC) WHERE device_id IS NOT NULL;
CREATE INDEX conversations_with_humans ON conversations (updated_at DESC, id DESC) WHERE status = 'human';
CREATE INDEX conversations_by_assignee ON conversations (assignee, updated_at DESC, id DESC) WHERE assignee IS NOT NULL;

-- The ledger: one row per inbound message in its terminal state. The conversation is checked at the end of the transaction,
-- because the ledger row is written before the conversation it opens.
CREATE TABLE turns (
    id TEXT PRIMARY KEY NOT NULL,
    dedupe_id TEXT NOT NULL UNIQUE,
    stream INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    channel TEXT NOT NULL CHECK (channel IN ('telegram', 'messenger', 'web')),
    bot TEXT NOT NULL,
    peer TEXT NOT NULL,
    conversation_id TEXT REFERENCES conversations (id) DEFERRABLE INITIALLY DEFERRED,
    state TEXT NOT NULL CHECK (
        state IN ('answered', 'merged', 'superseded', 'handed_off', 'ignored', 'rejected', 'dead_lettered')
    ),
    reason TEXT,
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    responder TEXT,
    traceparent TEXT,
    timings TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    committed_at INTEGER NOT NULL
) STRICT;

CREATE INDEX turns_by_conversation ON turns (conversation_id, stream, sequence) WHERE conversation_id IS NOT NULL;

CREATE TABLE messages (
    id TEXT PRIMARY KEY NOT NULL,
    conversation_id TEXT NOT NULL REFERENCES conversations (id),
    ordinal INTEGER NOT NULL CHECK (ordinal > 0),
    turn_id TEXT REFERENCES turns (id),
    role TEXT NOT NULL CHECK (role IN ('user', 'assistant', 'tool', 'system')),
    author TEXT NOT NULL CHECK (author IN ('user', 'bot', 'agent', 'import')),
    content TEXT NOT NULL,
    attachments TEXT,
    tool TEXT,
    platform_message_id TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (conversation_id, ordinal)
) STRICT;

CREATE INDEX messages_by_turn ON messages (turn_id, ordinal) WHERE turn_id IS NOT NULL;

-- stream, partition and sequence are those of the inbound message that the part answers; ordinal counts within the turn.
CREATE TABLE deliveries (
    id TEXT PRIMARY KEY NOT NULL,
    turn_id TEXT NOT NULL REFERENCES turns (id),
    stream INTEGER NOT NULL,
    partition INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    ordinal INTEGER NOT NULL CHECK (ordinal >= 0),
    conversation_id TEXT REFERENCES conversations (id),
    message_id TEXT NOT NULL,
    channel TEXT NOT NULL CHECK (channel IN ('telegram', 'messenger', 'web')),
    bot TEXT NOT NULL,
    peer TEXT NOT NULL,
    part INTEGER NOT NULL CHECK (part >= 0),
    parts INTEGER NOT NULL CHECK (parts > part),
    content TEXT NOT NULL,
    buttons TEXT,
    status TEXT NOT NULL CHECK (status IN ('pending', 'sending', 'sent', 'failed', 'uncertain')),
    attempts INTEGER NOT NULL CHECK (attempts >= 0),
    error TEXT,
    platform_message_id TEXT,
    traceparent TEXT,
    created_at INTEGER NOT NULL,
    -- When the last attempt began.
    tried_at INTEGER,
    settled_at INTEGER,
    UNIQUE (turn_id, ordinal)
) STRICT;

CREATE INDEX deliveries_unsettled ON deliveries (partition, stream, sequence, ordinal)
    WHERE status IN ('pending', 'sending');

CREATE TABLE idempotency_keys (
    scope TEXT NOT NULL,
    key TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    turn_id TEXT NOT NULL,
    conversation_id TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, key)
) STRICT;

CREATE INDEX idempotency_keys_by_turn ON idempotency_keys (turn_id);
