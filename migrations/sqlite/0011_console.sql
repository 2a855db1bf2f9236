-- What the operators' console looks for and keeps. The same tables, columns and indexes as
-- migrations/postgres/0011_console.sql.

-- People look for messages by the platform's id, and for conversations by the other end.
CREATE INDEX messages_by_platform_id ON messages (platform_message_id)
    WHERE platform_message_id IS NOT NULL AND role = 'user';
CREATE INDEX conversations_by_peer ON conversations (peer);

-- Messages that ended without a place in any conversation: refused, ignored, given up.
CREATE INDEX turns_apart ON turns (channel, bot, peer, stream, sequence) WHERE conversation_id IS NULL;

-- How it went; null where nobody came to say.
ALTER TABLE operator_actions ADD COLUMN result TEXT;
CREATE INDEX operator_actions_by_time ON operator_actions (created_at DESC, id DESC);

-- Whose turns are not begun for now: of a conversation (`<channel>.<bot>.<peer>`), a bot, or a partition.
CREATE TABLE holds (
    scope TEXT NOT NULL CHECK (scope IN ('conversation', 'bot', 'partition')),
    target TEXT NOT NULL,
    actor TEXT,
    reason TEXT,
    created_at INTEGER NOT NULL,
    PRIMARY KEY (scope, target)
) STRICT;

-- Dead letters that are redriven or discarded in bulk. A job whose process died is seen by its sign of life.
CREATE TABLE dead_letter_jobs (
    id TEXT PRIMARY KEY NOT NULL,
    verb TEXT NOT NULL CHECK (verb IN ('redrive', 'discard')),
    selection TEXT NOT NULL,
    actor TEXT,
    reason TEXT,
    state TEXT NOT NULL CHECK (state IN ('running', 'done', 'failed')),
    total INTEGER NOT NULL CHECK (total >= 0),
    seen INTEGER NOT NULL CHECK (seen >= 0),
    outcome TEXT,
    created_at INTEGER NOT NULL,
    signed_at INTEGER NOT NULL,
    ended_at INTEGER
) STRICT;
