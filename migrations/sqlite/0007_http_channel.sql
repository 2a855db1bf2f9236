-- The channel `http`, and deliveries that wait for a person. The same as migrations/postgres/0007_http_channel.sql.

-- A wider CHECK changes nothing of the rows that are there, so the schema's text is changed and no table is copied
-- (https://www.sqlite.org/lang_altertable.html, 7). The index below is what makes every connection read the schema again.
PRAGMA writable_schema = ON;

UPDATE sqlite_schema
SET sql = replace(
    replace(sql, '(''telegram'', ''messenger'', ''web'')', '(''telegram'', ''messenger'', ''web'', ''http'')'),
    '(''telegram'', ''messenger'', ''web'', ''api'')', '(''telegram'', ''messenger'', ''web'', ''api'', ''http'')'
)
WHERE type = 'table' AND name IN ('conversations', 'turns', 'deliveries');

PRAGMA writable_schema = RESET;

-- What people look for: newest first.
CREATE INDEX deliveries_for_people ON deliveries (bot, created_at DESC, id DESC)
    WHERE status IN ('failed', 'uncertain');
