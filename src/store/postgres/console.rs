//! What the operators' console reads and keeps, on PostgreSQL.

use sqlx::{Postgres as Database, QueryBuilder};
use uuid::Uuid;

use super::Postgres;
use crate::message::{ConversationKey, DeliveryStatus, Timestamp};
use crate::store::console::{
    ConversationSearch, DeliveryTime, FoundMessage, Hold, HoldScope, Job, LedgerRow, PartitionRow, RecordedAction,
};
use crate::store::error::refused;
use crate::store::operator::OperatorAction;
use crate::store::rows::{self, conversation_columns, delivery_columns, ledger_columns, message_columns};
use crate::store::{
    AddressedDelivery, Conversation, DeliveryRow, PAGE_ROWS_MAX, Position, StoreError, StoredMessage, TurnTotals, merge,
};

impl Postgres {
    pub(in crate::store) async fn ledger_rows(
        &self,
        key: &ConversationKey,
        conversation_id: Option<Uuid>,
        before: Option<Position>,
        limit: u32,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        // Each half has an index of its own.
        const LIST: &str = concat!(
            "SELECT * FROM (SELECT ",
            ledger_columns!(),
            " FROM turns WHERE conversation_id = $1 AND (stream, sequence) < ($2, $3) \
                 ORDER BY stream DESC, sequence DESC LIMIT $4) AS placed \
             UNION ALL SELECT * FROM (SELECT ",
            ledger_columns!(),
            " FROM turns WHERE conversation_id IS NULL AND channel = $5 AND bot = $6 AND peer = $7 \
                 AND (stream, sequence) < ($2, $3) ORDER BY stream DESC, sequence DESC LIMIT $4) AS apart \
             ORDER BY stream DESC, sequence DESC LIMIT $4"
        );
        let (stream, sequence) = rows::before(before);
        let found = sqlx::query(LIST)
            .bind(conversation_id)
            .bind(stream)
            .bind(sequence)
            .bind(i64::from(limit.clamp(1, PAGE_ROWS_MAX)))
            .bind(key.channel.as_str())
            .bind(&*key.bot)
            .bind(key.peer.to_string())
            .fetch_all(&self.pool)
            .await;
        found.map_err(refused("list a conversation's turns"))?.iter().map(rows::ledger).collect()
    }

    pub(in crate::store) async fn ledger_row(&self, turn_id: Uuid) -> Result<Option<LedgerRow>, StoreError> {
        const FIND: &str = concat!("SELECT ", ledger_columns!(), " FROM turns WHERE id = $1");
        let found = sqlx::query(FIND).bind(turn_id).fetch_optional(&self.pool).await;
        found.map_err(refused("show a turn"))?.as_ref().map(rows::ledger).transpose()
    }

    pub(in crate::store) async fn recent_ledger_rows(
        &self,
        first: Uuid,
        limit: u32,
    ) -> Result<Vec<LedgerRow>, StoreError> {
        const LIST: &str =
            concat!("SELECT ", ledger_columns!(), " FROM turns WHERE id >= $1 ORDER BY id DESC LIMIT $2");
        let found = sqlx::query(LIST).bind(first).bind(i64::from(limit)).fetch_all(&self.pool).await;
        found.map_err(refused("list recent turns"))?.iter().map(rows::ledger).collect()
    }

    pub(in crate::store) async fn recent_delivery_times(
        &self,
        first: Uuid,
        limit: u32,
    ) -> Result<Vec<DeliveryTime>, StoreError> {
        const LIST: &str = "SELECT created_at, settled_at FROM deliveries \
             WHERE turn_id >= $1 AND status = 'sent' AND settled_at IS NOT NULL ORDER BY turn_id DESC LIMIT $2";
        let found = sqlx::query(LIST).bind(first).bind(i64::from(limit)).fetch_all(&self.pool).await;
        found.map_err(refused("time recent deliveries"))?.iter().map(rows::delivery_time).collect()
    }

    pub(in crate::store) async fn recent_turn_totals(&self, first: Uuid) -> Result<TurnTotals, StoreError> {
        const COUNT: &str = "SELECT state, count(*) AS count FROM turns WHERE id >= $1 GROUP BY state ORDER BY state";
        let found = sqlx::query(COUNT).bind(first).fetch_all(&self.pool).await;
        let found = found.map_err(refused("count recent turns"))?;
        found.iter().map(|row| Ok((rows::word(row, "state")?, rows::number(row, "count")?))).collect()
    }

    pub(in crate::store) async fn deliveries_of_turns(
        &self,
        turn_ids: &[Uuid],
    ) -> Result<Vec<DeliveryRow>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            delivery_columns!(),
            " FROM deliveries WHERE turn_id = ANY($1) ORDER BY turn_id, ordinal"
        );
        let found = sqlx::query(LIST).bind(turn_ids).fetch_all(&self.pool).await;
        found.map_err(refused("list turns' deliveries"))?.iter().map(rows::delivery).collect()
    }

    pub(in crate::store) async fn messages_of_turns(
        &self,
        turn_ids: &[Uuid],
    ) -> Result<Vec<StoredMessage>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            message_columns!(),
            " FROM messages WHERE turn_id = ANY($1) ORDER BY turn_id, ordinal LIMIT 5000"
        );
        let found = sqlx::query(LIST).bind(turn_ids).fetch_all(&self.pool).await;
        found.map_err(refused("list turns' messages"))?.iter().map(rows::message).collect()
    }

    /// The status is written into the statement, so that the indexes over unsettled and troubled deliveries serve it.
    pub(in crate::store) async fn deliveries_in(
        &self,
        status: DeliveryStatus,
        limit: u32,
    ) -> Result<Vec<AddressedDelivery>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            delivery_columns!(),
            ", channel, bot, peer, conversation_id FROM deliveries WHERE status = '"
        );
        let mut query = QueryBuilder::<Database>::new(LIST);
        query.push(status.as_str()).push("' AND status IN (");
        query.push(match status {
            DeliveryStatus::Pending | DeliveryStatus::Sending => "'pending', 'sending'",
            DeliveryStatus::Failed | DeliveryStatus::Uncertain | DeliveryStatus::Sent => "'failed', 'uncertain'",
        });
        query.push(") ORDER BY created_at, id LIMIT ").push_bind(i64::from(limit.clamp(1, PAGE_ROWS_MAX)));
        let found = query.build().fetch_all(&self.pool).await.map_err(refused("list deliveries"))?;
        found.iter().map(rows::addressed).collect()
    }

    pub(in crate::store) async fn search_conversations(
        &self,
        search: &ConversationSearch,
    ) -> Result<Vec<Conversation>, StoreError> {
        const LIST: &str = concat!("SELECT ", conversation_columns!(), " FROM conversations c WHERE TRUE");
        let mut query = QueryBuilder::<Database>::new(LIST);
        if let Some(peers) = &search.peers {
            query.push(" AND c.peer = ANY(").push_bind(peers).push(")");
        }
        if let Some(device_id) = &search.device_id {
            query.push(" AND c.device_id = ").push_bind(device_id);
        }
        if let Some(bot) = &search.bot {
            query.push(" AND c.bot = ").push_bind(bot);
        }
        if let Some(assignee) = &search.assignee {
            query.push(" AND c.assignee = ").push_bind(assignee);
        }
        if let Some(status) = search.status {
            query.push(" AND c.status = '").push(status.as_str()).push("'");
        }
        query.push(" ORDER BY c.updated_at DESC, c.id DESC LIMIT ");
        query.push_bind(i64::from(search.limit.clamp(1, PAGE_ROWS_MAX)));
        let found = query.build().fetch_all(&self.pool).await.map_err(refused("search conversations"))?;
        found.iter().map(rows::conversation).collect()
    }

    pub(in crate::store) async fn messages_by_platform_id(
        &self,
        id: &str,
        limit: u32,
    ) -> Result<Vec<FoundMessage>, StoreError> {
        const FIND: &str = concat!(
            "SELECT conversation_id, ",
            message_columns!(),
            " FROM messages WHERE platform_message_id = $1 AND platform_message_id IS NOT NULL AND role = 'user' \
             ORDER BY created_at DESC, id LIMIT $2"
        );
        let found = sqlx::query(FIND).bind(id).bind(i64::from(limit)).fetch_all(&self.pool).await;
        found.map_err(refused("look for a message"))?.iter().map(rows::found_message).collect()
    }

    pub(in crate::store) async fn partitions(&self, stream: i64) -> Result<Vec<PartitionRow>, StoreError> {
        const LIST: &str = "SELECT partition, epoch, checkpoint FROM partitions WHERE stream = $1 ORDER BY partition";
        let found = sqlx::query(LIST).bind(stream).fetch_all(&self.pool).await;
        found.map_err(refused("list partitions"))?.iter().map(rows::partition).collect()
    }

    pub(in crate::store) async fn begin_operator_action(
        &self,
        id: Uuid,
        action: &OperatorAction,
    ) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO operator_actions (id, verb, target, actor, reason, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6)";
        let insert = sqlx::query(INSERT)
            .bind(id)
            .bind(action.verb.as_str())
            .bind(merge::storable(&action.target))
            .bind(action.actor.as_deref().map(merge::storable))
            .bind(action.reason.as_deref().map(merge::storable))
            .bind(action.at.to_offset_date_time());
        insert.execute(&self.pool).await.map(drop).map_err(refused("record an operator's action"))
    }

    pub(in crate::store) async fn end_operator_action(&self, id: Uuid, result: &str) -> Result<(), StoreError> {
        let update =
            sqlx::query("UPDATE operator_actions SET result = $2 WHERE id = $1").bind(id).bind(merge::storable(result));
        update.execute(&self.pool).await.map(drop).map_err(refused("record how an operator's action went"))
    }

    pub(in crate::store) async fn operator_actions(
        &self,
        before: Option<(Timestamp, Uuid)>,
        limit: u32,
    ) -> Result<Vec<RecordedAction>, StoreError> {
        let mut query = QueryBuilder::<Database>::new(
            "SELECT id, verb, target, actor, reason, result, created_at FROM operator_actions WHERE TRUE",
        );
        if let Some((created_at, id)) = before {
            query.push(" AND (created_at, id) < (").push_bind(created_at.to_offset_date_time());
            query.push(", ").push_bind(id).push(")");
        }
        query.push(" ORDER BY created_at DESC, id DESC LIMIT ");
        query.push_bind(i64::from(limit.clamp(1, PAGE_ROWS_MAX)));
        let found = query.build().fetch_all(&self.pool).await.map_err(refused("list operators' actions"))?;
        found.iter().map(rows::recorded_action).collect()
    }

    pub(in crate::store) async fn holds(&self) -> Result<Vec<Hold>, StoreError> {
        const LIST: &str = "SELECT scope, target, actor, reason, created_at FROM holds \
             ORDER BY scope = 'conversation', created_at, target";
        let found = sqlx::query(LIST).fetch_all(&self.pool).await;
        found.map_err(refused("list holds"))?.iter().map(rows::hold).collect()
    }

    pub(in crate::store) async fn put_hold(&self, hold: &Hold) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO holds (scope, target, actor, reason, created_at) \
             VALUES ($1, $2, $3, $4, $5) ON CONFLICT DO NOTHING";
        let insert = sqlx::query(INSERT)
            .bind(hold.scope.as_str())
            .bind(&hold.target)
            .bind(hold.actor.as_deref().map(merge::storable))
            .bind(hold.reason.as_deref().map(merge::storable))
            .bind(hold.created_at.to_offset_date_time());
        insert.execute(&self.pool).await.map(drop).map_err(refused("hold turns back"))
    }

    pub(in crate::store) async fn remove_hold(&self, scope: HoldScope, target: &str) -> Result<bool, StoreError> {
        let delete =
            sqlx::query("DELETE FROM holds WHERE scope = $1 AND target = $2").bind(scope.as_str()).bind(target);
        let deleted = delete.execute(&self.pool).await.map_err(refused("let turns go on"))?;
        Ok(deleted.rows_affected() == 1)
    }

    pub(in crate::store) async fn create_job(&self, job: &Job) -> Result<(), StoreError> {
        const INSERT: &str = "INSERT INTO dead_letter_jobs \
                 (id, verb, selection, actor, reason, state, total, seen, created_at, signed_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        let insert = sqlx::query(INSERT)
            .bind(job.id)
            .bind(job.verb.as_str())
            .bind(merge::storable(&job.selection))
            .bind(job.actor.as_deref().map(merge::storable))
            .bind(job.reason.as_deref().map(merge::storable))
            .bind(job.state.as_str())
            .bind(rows::sequence(job.total))
            .bind(rows::sequence(job.seen))
            .bind(job.created_at.to_offset_date_time())
            .bind(job.signed_at.to_offset_date_time());
        insert.execute(&self.pool).await.map(drop).map_err(refused("begin a job"))
    }

    pub(in crate::store) async fn update_job(&self, job: &Job) -> Result<(), StoreError> {
        const UPDATE: &str = "UPDATE dead_letter_jobs \
             SET state = $2, total = $3, seen = $4, outcome = $5, signed_at = $6, ended_at = $7 WHERE id = $1";
        let update = sqlx::query(UPDATE)
            .bind(job.id)
            .bind(job.state.as_str())
            .bind(rows::sequence(job.total))
            .bind(rows::sequence(job.seen))
            .bind(job.outcome.as_deref().map(merge::storable))
            .bind(job.signed_at.to_offset_date_time())
            .bind(job.ended_at.map(Timestamp::to_offset_date_time));
        update.execute(&self.pool).await.map(drop).map_err(refused("write how far a job is"))
    }

    pub(in crate::store) async fn jobs(&self, limit: u32) -> Result<Vec<Job>, StoreError> {
        const LIST: &str = "SELECT id, verb, selection, actor, reason, state, total, seen, outcome, created_at, \
                 signed_at, ended_at FROM dead_letter_jobs ORDER BY id DESC LIMIT $1";
        let found = sqlx::query(LIST).bind(i64::from(limit)).fetch_all(&self.pool).await;
        found.map_err(refused("list jobs"))?.iter().map(rows::job).collect()
    }
}
