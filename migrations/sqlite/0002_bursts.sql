-- Messages that a later turn of their conversation answers. The same columns and rules as migrations/postgres/0002_bursts.sql.

-- The turn that a merged or superseded message became part of; written in the same transaction, in any order.
ALTER TABLE turns ADD COLUMN merged_into TEXT REFERENCES turns (id) DEFERRABLE INITIALLY DEFERRED
    CHECK ((merged_into IS NOT NULL) = (state IN ('merged', 'superseded')));

CREATE INDEX turns_by_merged_into ON turns (merged_into) WHERE merged_into IS NOT NULL;
