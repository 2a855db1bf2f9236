-- Which takeover charged a message's last death. The same as migrations/postgres/0014_death_epochs.sql.

-- The stream and the epoch in which the last death was charged: a takeover that charges again charges nothing. NULL where nobody
-- wrote them down.
ALTER TABLE process_deaths ADD COLUMN stream INTEGER;
ALTER TABLE process_deaths ADD COLUMN epoch INTEGER;
