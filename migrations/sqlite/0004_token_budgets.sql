-- What the models of bots with a budget have used, by day. The same table, columns and rules as
-- migrations/postgres/0004_token_budgets.sql.

-- The day counts from 1970-01-01, UTC.
CREATE TABLE token_usage (
    bot TEXT NOT NULL,
    day INTEGER NOT NULL,
    tokens INTEGER NOT NULL CHECK (tokens >= 0),
    PRIMARY KEY (bot, day)
) STRICT;
