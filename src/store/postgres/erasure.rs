//! Taking a person's data out, on PostgreSQL.
//!
//! Invariant: the conversations are locked first, so a turn that commits meanwhile is found whole, or finds nothing.

use sqlx::{Executor, PgConnection, Postgres as Database};
use uuid::Uuid;

use super::Postgres;
use crate::message::{Channel, Peer, Timestamp};
use crate::store::erasure::{ERASED, ERASED_PEER, PEERS_LIKE, REMOVE_SPENT, UNHOLD, UNNAME_IN_TEXTS, no_timings};
use crate::store::error::refused;
use crate::store::{BATCH_ROWS, ErasedRows, PersonalData, StoreError, UnendedMessage, rows};

impl Postgres {
    pub(in crate::store) async fn peers_like(
        &self,
        channel: Channel,
        bot: &str,
        pattern: &str,
    ) -> Result<Vec<Peer>, StoreError> {
        let refused = refused("find a person's chats");
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        // A scan of the ledger takes as long as it takes; it locks nothing.
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(&refused)?;
        let query = sqlx::query(PEERS_LIKE).bind(channel.as_str()).bind(bot).bind(pattern);
        let found = query.fetch_all(&mut *transaction).await.map_err(&refused)?;
        transaction.commit().await.map_err(&refused)?;
        found.iter().map(|row| rows::word(row, "peer")).collect()
    }

    pub(in crate::store) async fn conversations_of_person(
        &self,
        channel: Channel,
        bot: &str,
        peers: &[String],
        device: &str,
    ) -> Result<Vec<(Uuid, Peer)>, StoreError> {
        const FIND: &str = "SELECT id, peer FROM conversations \
             WHERE channel = $1 AND bot = $2 AND (peer = ANY($3) OR device_id = $4) ORDER BY id";
        let query = sqlx::query(FIND).bind(channel.as_str()).bind(bot).bind(peers).bind(device);
        let found = query.fetch_all(&self.pool).await.map_err(refused("find a person's conversations"))?;
        found.iter().map(|row| Ok((rows::uuid(row, "id")?, rows::word(row, "peer")?))).collect()
    }

    pub(in crate::store) async fn erase(
        &self,
        data: &PersonalData,
        unended: &[UnendedMessage],
        now: Timestamp,
    ) -> Result<ErasedRows, StoreError> {
        const END: &str = "INSERT INTO turns (id, dedupe_id, stream, partition, sequence, channel, bot, peer, state, reason, \
                 attempts, timings, received_at, started_at, committed_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'ignored', $9, 0, $10, $11, $12, $12) ON CONFLICT DO NOTHING";
        const OF_TURNS: [&str; 4] = [
            "DELETE FROM deliveries WHERE turn_id = ANY($1)",
            "DELETE FROM turn_records WHERE turn_id = ANY($1)",
            "DELETE FROM turn_journal WHERE turn_id = ANY($1)",
            "DELETE FROM idempotency_keys WHERE turn_id = ANY($1)",
        ];
        const UNNAME: &str = "UPDATE turns SET peer = $2, conversation_id = NULL, traceparent = NULL, \
                 reason = CASE WHEN reason IS NULL THEN NULL ELSE $3 END \
             WHERE id = ANY($1)";
        let refused = refused("erase a person's data");
        let mut erased = ErasedRows::default();
        let mut transaction = self.pool.begin().await.map_err(&refused)?;
        // A scan of the ledger takes as long as it takes; it locks nothing.
        sqlx::query("SET LOCAL statement_timeout = 0").execute(&mut *transaction).await.map_err(&refused)?;
        let mut turns = self.turns_of_person(data, &mut *transaction).await?;
        sqlx::query("SELECT 1 FROM conversations WHERE id = ANY($1) ORDER BY id FOR UPDATE")
            .bind(&data.conversations)
            .execute(&mut *transaction)
            .await
            .map_err(&refused)?;
        for message in unended {
            let end = sqlx::query(END)
                .bind(message.turn_id)
                .bind(&message.dedupe_id)
                .bind(message.stream)
                .bind(i32::from(message.partition))
                .bind(rows::sequence(message.sequence))
                .bind(data.channel.as_str())
                .bind(&data.bot)
                .bind(ERASED_PEER)
                .bind(ERASED)
                .bind(no_timings())
                .bind(message.received_at.to_offset_date_time())
                .bind(now.to_offset_date_time());
            erased.unanswered += end.execute(&mut *transaction).await.map_err(&refused)?.rows_affected();
        }
        for id in &data.conversations {
            const LATE: &str = "SELECT id FROM turns WHERE conversation_id = $1";
            let late = sqlx::query_scalar(LATE).bind(id).fetch_all(&mut *transaction).await;
            turns.extend(late.map_err(&refused)? as Vec<Uuid>);
        }
        turns.sort_unstable();
        turns.dedup();
        for batch in turns.chunks(BATCH_ROWS) {
            let ids = batch;
            let mut counts = [0; OF_TURNS.len()];
            for (count, statement) in counts.iter_mut().zip(OF_TURNS) {
                let done = sqlx::query(statement).bind(ids).execute(&mut *transaction).await;
                *count = done.map_err(&refused)?.rows_affected();
            }
            erased.deliveries += counts[0];
            erased.turn_records += counts[1];
            let unname = sqlx::query(UNNAME).bind(ids).bind(ERASED_PEER).bind(ERASED);
            erased.turns += unname.execute(&mut *transaction).await.map_err(&refused)?.rows_affected();
        }
        for id in &data.conversations {
            let of = |statement| sqlx::query(statement).bind(id);
            of("DELETE FROM pending_actions WHERE conversation_id = $1")
                .execute(&mut *transaction)
                .await
                .map_err(&refused)?;
            let messages = of("DELETE FROM messages WHERE conversation_id = $1").execute(&mut *transaction).await;
            erased.messages += messages.map_err(&refused)?.rows_affected();
            let conversations = of("DELETE FROM conversations WHERE id = $1").execute(&mut *transaction).await;
            erased.conversations += conversations.map_err(&refused)?.rows_affected();
        }
        for peer in data.peers() {
            let of = |statement| sqlx::query(statement).bind(data.channel.as_str()).bind(&data.bot).bind(peer.clone());
            of("DELETE FROM chats WHERE channel = $1 AND bot = $2 AND peer = $3")
                .execute(&mut *transaction)
                .await
                .map_err(&refused)?;
            let reactions = of("DELETE FROM feedback WHERE channel = $1 AND bot = $2 AND peer = $3");
            erased.reactions += reactions.execute(&mut *transaction).await.map_err(&refused)?.rows_affected();
        }
        // In groups, too.
        let reactions = sqlx::query("DELETE FROM feedback WHERE channel = $1 AND bot = $2 AND sender = $3");
        let reactions = reactions.bind(data.channel.as_str()).bind(&data.bot).bind(&data.person);
        erased.reactions += reactions.execute(&mut *transaction).await.map_err(&refused)?.rows_affected();
        unname(&mut transaction, data).await.map_err(&refused)?;
        transaction.commit().await.map_err(&refused)?;
        Ok(erased)
    }

    pub(in crate::store) async fn remove_spent_journals(&self) -> Result<(), StoreError> {
        let removed = sqlx::query(REMOVE_SPENT).execute(&self.pool).await;
        removed.map(drop).map_err(refused("remove journals of turns that have ended"))
    }

    pub(in crate::store) async fn count_personal_data(&self, data: &PersonalData) -> Result<ErasedRows, StoreError> {
        const COUNT: &str = "SELECT (SELECT count(*) FROM messages WHERE conversation_id = ANY($1)) AS messages, \
             (SELECT count(*) FROM deliveries WHERE turn_id = ANY($2)) AS deliveries, \
             (SELECT count(*) FROM turn_records WHERE turn_id = ANY($2)) AS turn_records, \
             (SELECT count(*) FROM feedback WHERE channel = $3 AND bot = $4 \
                 AND (sender = $5 OR peer = ANY($6))) AS reactions";
        let turns = self.turns_of_person(data, &self.pool).await?;
        let query = sqlx::query(COUNT)
            .bind(&data.conversations)
            .bind(&turns)
            .bind(data.channel.as_str())
            .bind(&data.bot)
            .bind(&data.person)
            .bind(data.peers());
        let row = query.fetch_one(&self.pool).await.map_err(refused("count a person's data"))?;
        rows::personal_data(&row, data.conversations.len(), turns.len())
    }

    async fn turns_of_person<'e>(
        &self,
        data: &PersonalData,
        executor: impl Executor<'e, Database = Database>,
    ) -> Result<Vec<Uuid>, StoreError> {
        const FIND: &str = "SELECT id FROM turns WHERE channel = $1 AND bot = $2 AND (peer = ANY($3) \
             OR conversation_id = ANY($4))";
        let query = sqlx::query_scalar(FIND)
            .bind(data.channel.as_str())
            .bind(&data.bot)
            .bind(data.peers())
            .bind(&data.conversations);
        query.fetch_all(executor).await.map_err(refused("find a person's turns"))
    }
}

/// What operators did to the person's chats stays, of nobody; a pause ends.
async fn unname(connection: &mut PgConnection, data: &PersonalData) -> sqlx::Result<()> {
    for name in data.names() {
        sqlx::query(UNHOLD).bind(&name).execute(&mut *connection).await?;
        for statement in UNNAME_IN_TEXTS {
            sqlx::query(statement).bind(&name).bind(ERASED_PEER).execute(&mut *connection).await?;
        }
    }
    Ok(())
}
