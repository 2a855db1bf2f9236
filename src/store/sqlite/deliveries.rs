//! Deliveries on SQLite.
//!
//! Invariant: a delivery's status changes only under the write lock, by the rules of `store/sending.rs`.

use sqlx::SqliteConnection;
use uuid::Uuid;

use super::{Sqlite, holds};
use crate::message::{DeliveryStatus, Timestamp};
use crate::store::error::refused;
use crate::store::rows::{self, delivery_columns, pending_columns};
use crate::store::{
    BATCH_ROWS, DeliveryCursor, DeliveryRow, Ownership, PAGE_ROWS_MAX, PendingDelivery, PendingPage, SendResult,
    SendStart, Settled, StoreError, TurnCommit, merge, sending,
};

impl Sqlite {
    pub(in crate::store) async fn pending_of_turn(&self, turn_id: Uuid) -> Result<Vec<PendingDelivery>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            pending_columns!(),
            " FROM deliveries WHERE turn_id = $1 AND status IN ('pending', 'sending') ORDER BY ordinal"
        );
        let found = sqlx::query(LIST).bind(turn_id.hyphenated()).fetch_all(&self.readers).await;
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
            .bind(partition)
            .bind(after_stream)
            .bind(after_sequence)
            .bind(after_ordinal)
            .bind(i64::from(limit))
            .fetch_all(&self.readers)
            .await
            .map_err(refused("list a partition's deliveries"))?;
        rows::pending_page(&found, limit)
    }

    pub(in crate::store) async fn deliveries_of_turn(&self, turn_id: Uuid) -> Result<Vec<DeliveryRow>, StoreError> {
        const LIST: &str =
            concat!("SELECT ", delivery_columns!(), " FROM deliveries WHERE turn_id = $1 ORDER BY ordinal");
        let found = sqlx::query(LIST).bind(turn_id.hyphenated()).fetch_all(&self.readers).await;
        found.map_err(refused("list a turn's deliveries"))?.iter().map(rows::delivery).collect()
    }

    pub(in crate::store) async fn settled_deliveries(&self, ids: &[Uuid]) -> Result<Vec<Settled>, StoreError> {
        const FIND: &str = "SELECT id, status FROM deliveries \
             WHERE id IN (SELECT value FROM json_each($1)) AND status NOT IN ('pending', 'sending')";
        let mut settled = Vec::with_capacity(ids.len());
        for batch in ids.chunks(BATCH_ROWS) {
            let found = sqlx::query(FIND).bind(serde_json::json!(batch)).fetch_all(&self.readers).await;
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

    pub(in crate::store) async fn begin_send(
        &self,
        delivery_id: Uuid,
        ownership: &Ownership,
        now: Timestamp,
    ) -> Result<SendStart, StoreError> {
        const BEGIN: &str = "UPDATE deliveries SET status = 'sending', attempts = $2, tried_at = $3 WHERE id = $1";
        let refused = refused("begin a send");
        let mut transaction = self.begin().await.map_err(&refused)?;
        if !holds(&mut transaction, ownership).await.map_err(&refused)? {
            return Ok(SendStart::Fenced);
        }
        let Some((status, attempts, tried_at)) = lock_delivery(&mut transaction, delivery_id).await? else {
            return Ok(SendStart::Unknown(sending::disowned(delivery_id.to_string())));
        };
        let start = sending::begin(delivery_id, status, attempts, tried_at, now);
        if let SendStart::Begun { attempt } = start {
            let begin =
                sqlx::query(BEGIN).bind(delivery_id.hyphenated()).bind(i64::from(attempt)).bind(now.as_micros());
            begin.execute(&mut *transaction).await.map_err(&refused)?;
        }
        transaction.commit().await.map_err(&refused)?;
        Ok(start)
    }

    pub(in crate::store) async fn settle_send(
        &self,
        delivery_id: Uuid,
        result: &SendResult,
        now: Timestamp,
    ) -> Result<Option<Settled>, StoreError> {
        const SETTLE: &str = "UPDATE deliveries SET status = $2, error = $3, platform_message_id = $4, settled_at = $5 \
             WHERE id = $1";
        let refused = refused("settle a send");
        let mut transaction = self.begin().await.map_err(&refused)?;
        let Some((status, ..)) = lock_delivery(&mut transaction, delivery_id).await? else {
            return Ok(None);
        };
        let Some(next) = sending::next(status, result) else {
            return Ok(sending::receipt(delivery_id, status));
        };
        let (error, platform_message_id) = sending::details(result);
        let settled = sending::receipt(delivery_id, next);
        sqlx::query(SETTLE)
            .bind(delivery_id.hyphenated())
            .bind(next.as_str())
            .bind(error.map(merge::storable))
            .bind(platform_message_id.map(merge::storable))
            .bind(settled.as_ref().map(|_| now.as_micros()))
            .execute(&mut *transaction)
            .await
            .map_err(&refused)?;
        transaction.commit().await.map_err(&refused)?;
        Ok(settled)
    }
}

/// Writes the parts of a turn.
pub(super) async fn insert_deliveries(connection: &mut SqliteConnection, turn: &TurnCommit) -> Result<(), sqlx::Error> {
    const INSERT: &str = "INSERT INTO deliveries (id, turn_id, stream, partition, sequence, ordinal, conversation_id, \
             message_id, channel, bot, peer, part, parts, content, buttons, status, attempts, traceparent, created_at) \
         SELECT value ->> 'id', $1, $2, $3, $4, value ->> 'ordinal', value ->> 'conversation_id', \
             value ->> 'message_id', value ->> 'channel', value ->> 'bot', value ->> 'peer', value ->> 'part', \
             value ->> 'parts', value ->> 'content', value ->> 'buttons', 'pending', 0, $5, value ->> 'created_at' \
         FROM json_each($6)";
    for batch in rows::delivery_rows(turn).chunks(BATCH_ROWS) {
        sqlx::query(INSERT)
            .bind(turn.turn_id.hyphenated())
            .bind(turn.position.stream)
            .bind(turn.ownership.partition)
            .bind(rows::sequence(turn.position.sequence))
            .bind(turn.traceparent.as_deref())
            .bind(serde_json::Value::from(batch))
            .execute(&mut *connection)
            .await?;
    }
    Ok(())
}

/// The delivery's status, its attempts and when the last of them began, which stay until the transaction ends.
async fn lock_delivery(
    connection: &mut SqliteConnection,
    delivery_id: Uuid,
) -> Result<Option<(DeliveryStatus, u32, Option<Timestamp>)>, StoreError> {
    const LOCK: &str = "SELECT status, attempts, tried_at FROM deliveries WHERE id = $1";
    let found = sqlx::query(LOCK).bind(delivery_id.hyphenated()).fetch_optional(connection).await;
    let row = found.map_err(refused("lock a delivery"))?;
    let read = |row| {
        Ok((rows::word(&row, "status")?, rows::number(&row, "attempts")?, rows::optional_moment(&row, "tried_at")?))
    };
    row.map(read).transpose()
}
