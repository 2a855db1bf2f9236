-- What is known of chats beside their conversations, what people feel about messages, and how a part of a reply looks. The
-- same tables and columns as migrations/sqlite/0006_chats.sql.

-- One row per chat of which there is something to know: that it is another one's continuation, where it is now, whether it
-- can be written to.
CREATE TABLE chats (
    channel TEXT NOT NULL,
    bot TEXT NOT NULL,
    peer TEXT NOT NULL,
    state JSONB NOT NULL,
    PRIMARY KEY (channel, bot, peer)
);

-- Reactions, the latest of each person to each message, by the platform's id of the message. None left is an empty list.
CREATE TABLE feedback (
    channel TEXT NOT NULL,
    bot TEXT NOT NULL,
    peer TEXT NOT NULL,
    platform_message_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    reactions JSONB NOT NULL,
    received_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (channel, bot, peer, platform_message_id, sender)
);

-- What a part is beside its text: formatting, what it answers, how it has to leave.
ALTER TABLE deliveries ADD COLUMN form JSONB;
