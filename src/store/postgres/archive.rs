//! Turns that have ended, as whoever looks back reads them, on PostgreSQL.

use sqlx::{Postgres as Database, QueryBuilder};
use uuid::Uuid;

use super::Postgres;
use crate::store::StoreError;
use crate::store::archive::{PastConversation, PastFilter, PastTurn, complete};
use crate::store::error::refused;
use crate::store::rows::{self, conversation_columns, message_columns};

impl Postgres {
    pub(in crate::store) async fn past_turn_count(&self, filter: &PastFilter) -> Result<u64, StoreError> {
        const COUNT: &str = concat!("SELECT count(*) ", rows::past_turns!());
        let mut query = QueryBuilder::new(COUNT);
        narrow(&mut query, filter);
        let count: i64 = query.build_query_scalar().fetch_one(&self.pool).await.map_err(refused("count past turns"))?;
        Ok(u64::try_from(count).unwrap_or_default())
    }

    pub(in crate::store) async fn past_turns(
        &self,
        filter: &PastFilter,
        after: Uuid,
        limit: usize,
    ) -> Result<Vec<PastTurn>, StoreError> {
        const LIST: &str = concat!(
            "SELECT t.id AS turn_id, t.state, t.responder, t.stream, t.sequence, t.traceparent, t.timings, t.received_at, r.record, ",
            conversation_columns!(),
            " ",
            rows::past_turns!()
        );
        const MESSAGES: &str =
            concat!("SELECT ", message_columns!(), " FROM messages WHERE turn_id = ANY($1) ORDER BY turn_id, ordinal");
        const MEMBERS: &str = "SELECT merged_into AS turn_id, sequence FROM turns \
             WHERE merged_into = ANY($1)";
        let refused = refused("list past turns");
        let mut query = QueryBuilder::new(LIST);
        narrow(&mut query, filter);
        query.push(" AND t.id > ").push_bind(after);
        query.push(" ORDER BY t.id LIMIT ").push_bind(i64::try_from(limit).unwrap_or(i64::MAX));
        let found = query.build().fetch_all(&self.pool).await.map_err(&refused)?;
        let mut turns = found.iter().map(rows::past_turn).collect::<Result<Vec<_>, _>>()?;
        let ids = turns.iter().map(|turn| turn.id).collect::<Vec<_>>();
        let messages = sqlx::query(MESSAGES).bind(&ids).fetch_all(&self.pool).await.map_err(&refused)?;
        let members = sqlx::query(MEMBERS).bind(&ids).fetch_all(&self.pool).await.map_err(&refused)?;
        let messages = messages.iter().map(rows::message).collect::<Result<_, _>>()?;
        let members = members.iter().map(rows::member).collect::<Result<Vec<_>, _>>()?;
        complete(&mut turns, messages, members);
        Ok(turns)
    }
}

fn narrow(query: &mut QueryBuilder<Database>, filter: &PastFilter) {
    let (first, end) = filter.ids();
    query.push(" AND t.id >= ").push_bind(first).push(" AND t.id < ").push_bind(end);
    query.push(" AND t.received_at >= ").push_bind(filter.since.to_offset_date_time());
    query.push(" AND t.received_at < ").push_bind(filter.until.to_offset_date_time());
    if let Some(bot) = &filter.bot {
        query.push(" AND t.bot = ").push_bind(bot.clone());
    }
    match &filter.conversation {
        Some(PastConversation::Id(id)) => drop(query.push(" AND t.conversation_id = ").push_bind(*id)),
        Some(PastConversation::Peer(peer)) => drop(query.push(" AND t.peer = ").push_bind(peer.to_string())),
        None => {}
    }
}
