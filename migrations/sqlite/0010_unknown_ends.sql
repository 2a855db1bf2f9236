-- What nobody saw the end of. The same as migrations/postgres/0010_unknown_ends.sql.

-- How many attempts at a delivery may have arrived without anybody knowing: once there is one, it can no longer be said to have
-- failed.
ALTER TABLE deliveries ADD COLUMN unclear_attempts INTEGER NOT NULL DEFAULT 0;
UPDATE deliveries SET unclear_attempts = 1 WHERE status = 'uncertain';

-- Messages that were open when the process that had them died: how many deaths they have seen, and whether one is being worked on
-- now. Without a row for those that nobody died with, and of no use once the message is in the ledger.
CREATE TABLE process_deaths (
    dedupe_id TEXT PRIMARY KEY,
    deaths INTEGER NOT NULL CHECK (deaths > 0),
    begun INTEGER NOT NULL CHECK (begun IN (0, 1))
) STRICT, WITHOUT ROWID;
