-- What nobody saw the end of. The same as migrations/postgres/0010_unknown_ends.sql.

-- How many attempts at a delivery may have arrived without anybody knowing: once there is one, it can no longer be said to have
-- failed.
ALTER TABLE deliveries ADD COLUMN unclear_attempts INTEGER NOT NULL DEFAULT 0;
UPDATE deliveries SET unclear_attempts = 1 WHERE status = 'uncertain';
