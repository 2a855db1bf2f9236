-- The channel `http`, and deliveries that wait for a person. The same as migrations/sqlite/0007_http_channel.sql.

ALTER TABLE conversations
    DROP CONSTRAINT conversations_channel_check,
    DROP CONSTRAINT conversations_platform_check,
    ADD CONSTRAINT conversations_channel_check CHECK (channel IN ('telegram', 'messenger', 'web', 'http')) NOT VALID,
    ADD CONSTRAINT conversations_platform_check
        CHECK (platform IN ('telegram', 'messenger', 'web', 'api', 'http')) NOT VALID;

ALTER TABLE turns
    DROP CONSTRAINT turns_channel_check,
    ADD CONSTRAINT turns_channel_check CHECK (channel IN ('telegram', 'messenger', 'web', 'http')) NOT VALID;

ALTER TABLE deliveries
    DROP CONSTRAINT deliveries_channel_check,
    ADD CONSTRAINT deliveries_channel_check CHECK (channel IN ('telegram', 'messenger', 'web', 'http')) NOT VALID;

-- NOT VALID: the rows there are satisfy the narrower rule, and a large table is not read under its lock to find that out.

-- What people look for: newest first.
CREATE INDEX deliveries_for_people ON deliveries (bot, created_at DESC, id DESC)
    WHERE status IN ('failed', 'uncertain');
