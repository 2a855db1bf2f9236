//! Outcomes of deliveries, and what became of messages afterwards, on PostgreSQL.

use sqlx::QueryBuilder;
use uuid::Uuid;

use super::Postgres;
use crate::message::{Replacement, Timestamp};
use crate::store::commit::hold;
use crate::store::error::refused;
use crate::store::outcomes::{AMENDED_WITHIN, DELETED};
use crate::store::rows::{self, delivery_columns, pending_columns};
use crate::store::{
    AddressedDelivery, DeliveryTotal, OutcomeFilter, Ownership, PAGE_ROWS_MAX, PendingDelivery, Resolution, StoreError,
    merge,
};

impl Postgres {
    pub(in crate::store) async fn delivery_totals(
        &self,
        bots: Option<&[String]>,
    ) -> Result<Vec<DeliveryTotal>, StoreError> {
        // Two statements in one, because each half has an index of its own.
        const TOTAL: &str = "SELECT bot, status, count(*) AS count, min(created_at) AS created_at FROM deliveries \
                 WHERE status IN ('pending', 'sending') GROUP BY bot, status \
             UNION ALL \
             SELECT bot, status, count(*) AS count, min(created_at) AS created_at FROM deliveries \
                 WHERE status IN ('failed', 'uncertain') GROUP BY bot, status \
             ORDER BY bot, status";
        let found = sqlx::query(TOTAL).fetch_all(&self.pool).await.map_err(refused("count deliveries"))?;
        let mut totals = found.iter().map(rows::delivery_total).collect::<Result<Vec<_>, _>>()?;
        totals.retain(|total| bots.is_none_or(|bots| bots.contains(&total.bot)));
        Ok(totals)
    }

    pub(in crate::store) async fn outcomes(
        &self,
        filter: &OutcomeFilter,
    ) -> Result<Vec<AddressedDelivery>, StoreError> {
        const LIST: &str = concat!(
            "SELECT ",
            delivery_columns!(),
            ", channel, bot, peer, conversation_id FROM deliveries WHERE status IN ('failed', 'uncertain')"
        );
        let mut query = QueryBuilder::new(LIST);
        if let Some(bots) = &filter.bots {
            query.push(" AND bot = ANY(");
            query.push_bind(bots).push(")");
        }
        if let Some(status) = filter.status {
            query.push(" AND status = ").push_bind(status.as_str());
        }
        if let Some((created_at, id)) = filter.after {
            query.push(" AND (created_at, id) < (").push_bind(created_at.to_offset_date_time());
            query.push(", ").push_bind(id).push(")");
        }
        query.push(" ORDER BY created_at DESC, id DESC LIMIT ");
        query.push_bind(i64::from(filter.limit.clamp(1, PAGE_ROWS_MAX)));
        let found = query.build().fetch_all(&self.pool).await.map_err(refused("list deliveries"))?;
        found.iter().map(rows::addressed).collect()
    }

    pub(in crate::store) async fn delivery(&self, id: Uuid) -> Result<Option<AddressedDelivery>, StoreError> {
        const FIND: &str = concat!(
            "SELECT ",
            delivery_columns!(),
            ", channel, bot, peer, conversation_id FROM deliveries WHERE id = $1"
        );
        let found = sqlx::query(FIND).bind(id).fetch_optional(&self.pool).await;
        found.map_err(refused("look up a delivery"))?.as_ref().map(rows::addressed).transpose()
    }

    pub(in crate::store) async fn pending_delivery(&self, id: Uuid) -> Result<Option<PendingDelivery>, StoreError> {
        const FIND: &str = concat!(
            "SELECT ",
            pending_columns!(),
            " FROM deliveries WHERE id = $1 AND status IN ('pending', 'sending')"
        );
        let found = sqlx::query(FIND).bind(id).fetch_optional(&self.pool).await;
        found.map_err(refused("look up a delivery"))?.as_ref().map(rows::pending).transpose()
    }

    pub(in crate::store) async fn resolve_delivery(
        &self,
        id: Uuid,
        resolution: Resolution,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        const RESOLVE: &str = "UPDATE deliveries SET status = $2, settled_at = $3, \
                 error = CASE WHEN $2 = 'sent' THEN NULL ELSE error END \
             WHERE id = $1 AND status = 'uncertain'";
        let settled_at = (resolution != Resolution::Resend).then_some(now.to_offset_date_time());
        let query = sqlx::query(RESOLVE).bind(id).bind(resolution.status().as_str()).bind(settled_at);
        let resolved = query.execute(&self.pool).await.map_err(refused("resolve a delivery"))?;
        Ok(resolved.rows_affected() == 1)
    }

    pub(in crate::store) async fn last_said_at(&self, conversation_id: Uuid) -> Result<Option<Timestamp>, StoreError> {
        const FIND: &str = "SELECT created_at FROM messages WHERE conversation_id = $1 AND role = 'user' \
             AND author = 'user' ORDER BY ordinal DESC LIMIT 1";
        let found = sqlx::query(FIND).bind(conversation_id).fetch_optional(&self.pool).await;
        found.map_err(refused("find a person's last message"))?.as_ref().map(rows::created_at).transpose()
    }

    pub(in crate::store) async fn amend_message(
        &self,
        conversation_id: Uuid,
        platform_message_id: &str,
        replacement: Option<&Replacement>,
        under: &Ownership,
    ) -> Result<bool, StoreError> {
        const AMEND: &str = "UPDATE messages SET content = $3, attachments = CASE WHEN $4 THEN $5 ELSE attachments END \
             WHERE conversation_id = $1 AND platform_message_id = $2 AND role = 'user' \
                 AND ordinal > (SELECT message_count - $6 FROM conversations WHERE id = $1)";
        // A list of conversations shows the beginning of the last message.
        const SHOW: &str = "UPDATE conversations SET snippet = $3 WHERE id = $1 AND message_count = \
             (SELECT max(ordinal) FROM messages WHERE conversation_id = $1 AND platform_message_id = $2 AND role = 'user')";
        let refused = refused("amend a message");
        let text = replacement.map_or(DELETED, |replacement| &replacement.text);
        let attachments = replacement.map_or(Some(&[][..]), |replacement| replacement.attachments.as_deref());
        let stored = attachments.filter(|list| !list.is_empty()).map(|list| serde_json::json!(list));
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        hold(&mut *transaction, Some(under)).await?;
        let amended = sqlx::query(AMEND)
            .bind(conversation_id)
            .bind(platform_message_id)
            .bind(merge::storable(text))
            .bind(attachments.is_some())
            .bind(stored.as_ref().map(merge::storable_json))
            .bind(AMENDED_WITHIN)
            .execute(&mut *transaction)
            .await
            .map_err(&refused)?;
        if amended.rows_affected() > 0 {
            let shown = sqlx::query(SHOW).bind(conversation_id).bind(platform_message_id).bind(merge::excerpt(text));
            shown.execute(&mut *transaction).await.map_err(&refused)?;
        }
        transaction.commit().await.map_err(&refused)?;
        Ok(amended.rows_affected() > 0)
    }
}
