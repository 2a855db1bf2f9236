//! Journals, records of turns and actions that wait for a person's word, on SQLite.
//!
//! Invariant: an action is decided in one statement, so that of two deciders one finds it decided.

use uuid::Uuid;

use super::Sqlite;
use crate::message::Timestamp;
use crate::store::error::refused;
use crate::store::journal::{self, Writing};
use crate::store::rows::{self, action_columns, journal_columns};
use crate::store::{Action, ActionStatus, JournalEntry, Journaled, StoreError};

impl Sqlite {
    /// Writes a group of steps; the outcomes are in their order.
    pub(in crate::store) async fn write_journals(&self, writings: &[Writing]) -> Result<Vec<Journaled>, StoreError> {
        let refused = refused("journal steps");
        let mut transaction = self.begin().await.map_err(&refused)?;
        let written = journal::write_all(&mut *transaction, writings).await?;
        transaction.commit().await.map_err(&refused)?;
        Ok(written)
    }

    pub(in crate::store) async fn journal(&self, turn_id: Uuid) -> Result<Vec<JournalEntry>, StoreError> {
        const LIST: &str =
            concat!("SELECT ", journal_columns!(), " FROM turn_journal WHERE turn_id = $1 ORDER BY ordinal, step");
        let found = sqlx::query(LIST).bind(turn_id.hyphenated()).fetch_all(&self.readers).await;
        found.map_err(refused("read a journal"))?.iter().map(rows::journal_entry).collect()
    }

    pub(in crate::store) async fn turn_record(&self, turn_id: Uuid) -> Result<Option<serde_json::Value>, StoreError> {
        let found = sqlx::query("SELECT record FROM turn_records WHERE turn_id = $1")
            .bind(turn_id.hyphenated())
            .fetch_optional(&self.readers)
            .await
            .map_err(refused("show a turn's record"))?;
        found.as_ref().map(rows::record).transpose()
    }

    pub(in crate::store) async fn tokens_used(&self, bot: &str, day: i64) -> Result<u64, StoreError> {
        let found: Option<i64> = sqlx::query_scalar("SELECT tokens FROM token_usage WHERE bot = $1 AND day = $2")
            .bind(bot)
            .bind(day)
            .fetch_optional(&self.readers)
            .await
            .map_err(refused("show the tokens of a day"))?;
        Ok(found.and_then(|tokens| u64::try_from(tokens).ok()).unwrap_or_default())
    }

    pub(in crate::store) async fn action(&self, id: &str) -> Result<Option<Action>, StoreError> {
        const FIND: &str = concat!("SELECT ", action_columns!(), " FROM pending_actions WHERE id = $1");
        let found = sqlx::query(FIND).bind(id).fetch_optional(&self.readers).await;
        found.map_err(refused("show an action"))?.as_ref().map(rows::action).transpose()
    }

    pub(in crate::store) async fn open_actions(
        &self,
        conversation_id: Uuid,
        turn_id: Uuid,
    ) -> Result<Vec<Action>, StoreError> {
        const OPEN: &str = concat!(
            "SELECT ",
            action_columns!(),
            " FROM pending_actions WHERE conversation_id = $1 AND (status = 'pending' OR decided_turn_id = $2) \
             ORDER BY created_at, id LIMIT 1000"
        );
        self.actions(OPEN, conversation_id, turn_id).await
    }

    pub(in crate::store) async fn actions_of_turn(
        &self,
        conversation_id: Uuid,
        turn_id: Uuid,
    ) -> Result<Vec<Action>, StoreError> {
        const OF_TURN: &str = concat!(
            "SELECT ",
            action_columns!(),
            " FROM pending_actions WHERE conversation_id = $1 AND turn_id = $2 ORDER BY created_at, id LIMIT 1000"
        );
        self.actions(OF_TURN, conversation_id, turn_id).await
    }

    async fn actions(
        &self,
        statement: &'static str,
        conversation_id: Uuid,
        turn_id: Uuid,
    ) -> Result<Vec<Action>, StoreError> {
        let found = sqlx::query(statement)
            .bind(conversation_id.hyphenated())
            .bind(turn_id.hyphenated())
            .fetch_all(&self.readers)
            .await;
        found.map_err(refused("list actions"))?.iter().map(rows::action).collect()
    }

    pub(in crate::store) async fn decide_action(
        &self,
        id: &str,
        decision: ActionStatus,
        turn_id: Uuid,
        now: Timestamp,
    ) -> Result<Option<Action>, StoreError> {
        const DECIDE: &str = "UPDATE pending_actions SET decided_turn_id = $3, decided_at = $4, \
                 status = CASE WHEN expires_at <= $4 AND $2 <> 'cancelled' THEN 'expired' ELSE $2 END \
             WHERE id = $1 AND status = 'pending'";
        let decide =
            sqlx::query(DECIDE).bind(id).bind(decision.as_str()).bind(turn_id.hyphenated()).bind(now.as_micros());
        decide.execute(&self.writer).await.map_err(refused("decide an action"))?;
        self.action(id).await
    }
}
