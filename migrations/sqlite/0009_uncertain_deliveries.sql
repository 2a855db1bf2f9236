-- What waits for a person to decide is counted every few seconds, and is few among many.
CREATE INDEX deliveries_uncertain ON deliveries (id) WHERE status = 'uncertain';
