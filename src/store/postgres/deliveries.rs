//! Deliveries on PostgreSQL.
//!
//! Invariant: a delivery's status changes only under its row's lock, by the rules of `store/sending.rs`.

use uuid::Uuid;

use super::Postgres;
use crate::message::{ConversationKey, DeliveryStatus};
use crate::store::error::refused;
use crate::store::rows::{self, delivery_columns, pending_columns};
use crate::store::sending;
use crate::store::{
    BATCH_ROWS, DeliveryCursor, DeliveryRow, PAGE_ROWS_MAX, PendingDelivery, PendingPage, Settled, StoreError,
};

impl Postgres {
    pub(in crate::store) async fn pending_of_turn(&self, turn_id: Uuid) -> Result<Vec<PendingDelivery>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            pending_columns!(),
            " FROM deliveries WHERE turn_id = $1 AND status IN ('pending', 'sending') ORDER BY ordinal"
        );
        let found = sqlx::query(LIST).bind(turn_id).fetch_all(&self.pool).await;
        found.map_err(refused("list a turn's deliveries"))?.iter().map(rows::pending).collect()
    }

    pub(in crate::store) async fn pending_of_partition(
        &self,
        stream: i64,
        partition: u16,
        after: Option<DeliveryCursor>,
        limit: u32,
    ) -> Result<PendingPage, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            pending_columns!(),
            " FROM deliveries WHERE status IN ('pending', 'sending') AND partition = $2 \
                 AND stream IN (SELECT id FROM streams WHERE name = (SELECT name FROM streams WHERE id = $1)) \
                 AND (stream, sequence, ordinal) > ($3, $4, $5) \
             ORDER BY stream, sequence, ordinal LIMIT $6"
        );
        let limit = limit.clamp(1, PAGE_ROWS_MAX);
        let (after_stream, after_sequence, after_ordinal) = rows::cursor_values(after);
        let found = sqlx::query(LIST)
            .bind(stream)
            .bind(i32::from(partition))
            .bind(after_stream)
            .bind(after_sequence)
            .bind(after_ordinal)
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await
            .map_err(refused("list a partition's deliveries"))?;
        rows::pending_page(&found, limit)
    }

    pub(in crate::store) async fn deliveries_of_turn(&self, turn_id: Uuid) -> Result<Vec<DeliveryRow>, StoreError> {
        const LIST: &str =
            concat!("SELECT ", delivery_columns!(), " FROM deliveries WHERE turn_id = $1 ORDER BY ordinal");
        let found = sqlx::query(LIST).bind(turn_id).fetch_all(&self.pool).await;
        found.map_err(refused("list a turn's deliveries"))?.iter().map(rows::delivery).collect()
    }

    pub(in crate::store) async fn has_unsettled(
        &self,
        partition: u16,
        key: &ConversationKey,
    ) -> Result<bool, StoreError> {
        const FIND: &str = "SELECT EXISTS (SELECT 1 FROM deliveries \
             WHERE status IN ('pending', 'sending') AND partition = $4 \
             AND channel = $1 AND bot = $2 AND peer = $3)";
        let find = sqlx::query_scalar(FIND).bind(key.channel.as_str()).bind(&*key.bot).bind(key.peer.to_string());
        let find = find.bind(i32::from(partition));
        find.fetch_one(&self.pool).await.map_err(refused("look up a chat's deliveries"))
    }

    pub(in crate::store) async fn settled_deliveries(&self, ids: &[Uuid]) -> Result<Vec<Settled>, StoreError> {
        const FIND: &str =
            "SELECT id, status FROM deliveries WHERE id = ANY($1) AND status NOT IN ('pending', 'sending')";
        let mut settled = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH_ROWS) {
            let found = sqlx::query(FIND).bind(batch).fetch_all(&self.pool).await;
            for row in &found.map_err(refused("look up deliveries"))? {
                settled.extend(sending::receipt(rows::uuid(row, "id")?, rows::word(row, "status")?));
            }
        }
        Ok(settled)
    }

    pub(in crate::store) async fn delivery_counts(&self) -> Result<Vec<(DeliveryStatus, i64)>, StoreError> {
        const COUNT: &str = "SELECT status, count(*) AS count FROM deliveries GROUP BY status ORDER BY status";
        let counted = self.audit(COUNT).await?;
        counted.iter().map(|row| Ok((rows::word(row, "status")?, rows::number(row, "count")?))).collect()
    }

    pub(in crate::store) async fn uncertain_deliveries(&self) -> Result<u64, StoreError> {
        const COUNT: &str = "SELECT count(*) FROM deliveries WHERE status = 'uncertain'";
        let count: i64 = sqlx::query_scalar(COUNT).fetch_one(&self.pool).await.map_err(refused("count deliveries"))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }
}
