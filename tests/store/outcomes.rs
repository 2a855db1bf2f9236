//! What people see and decide of deliveries, and what becomes of stored messages afterwards.

use turnwise::message::{Attachment, Channel, DeliveryStatus, Peer, Replacement, TerminalState};
use turnwise::store::{ConversationPatch, OutcomeFilter, Ownership, Resolution, SendResult, StoreError};
use uuid::Uuid;

use super::{Database, at, committed, first_turn, next_turn};

on_both!(
    deliveries_are_counted_and_listed,
    a_person_decides_of_uncertain_deliveries_only,
    a_stored_message_is_amended,
    nobody_but_the_owner_makes_news_known,
    every_channel_is_stored,
);

async fn deliveries_are_counted_and_listed(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let turn = first_turn(owner, 1, "ann");
    let mut other = first_turn(owner, 2, "bob");
    other.key.bot = "other".into();
    other.new_conversation.as_mut().unwrap().key.bot = "other".into();
    for part in &mut other.deliveries {
        part.key.bot = "other".into();
        part.created_at = at(30);
    }
    for turn in [&turn, &other] {
        committed(store.commit(turn.clone()).await.unwrap());
    }
    let settle = async |id, result| store.settle_send(id, &result, at(40)).await.unwrap();
    let ids: Vec<Uuid> =
        [&turn, &other].iter().flat_map(|turn| &turn.deliveries).map(|part| part.delivery_id).collect();
    settle(ids[0], SendResult::Sent { platform_message_id: None }).await;
    settle(ids[2], SendResult::Uncertain { error: "cut".to_owned() }).await;
    settle(ids[3], SendResult::Failed { error: "refused".to_owned() }).await;

    let total = |totals: Vec<turnwise::store::DeliveryTotal>| -> Vec<_> {
        totals.into_iter().map(|total| (total.bot, total.status.as_str(), total.count, total.oldest_at)).collect()
    };
    let all = [
        ("other".to_owned(), "failed", 1, at(30)),
        ("other".to_owned(), "uncertain", 1, at(30)),
        ("support".to_owned(), "pending", 1, at(20)),
    ];
    assert_eq!(total(store.delivery_totals(None).await.unwrap()), all);
    assert_eq!(total(store.delivery_totals(Some(&["support".to_owned()])).await.unwrap()), all[2..]);

    let list = async |filter: OutcomeFilter| -> Vec<Uuid> {
        let listed = store.outcomes(&OutcomeFilter { limit: 10, ..filter }).await.unwrap();
        listed.into_iter().map(|listed| listed.delivery.id).collect()
    };
    assert_eq!(list(OutcomeFilter::default()).await, [ids[3], ids[2]]);
    let failed = OutcomeFilter { status: Some(DeliveryStatus::Failed), ..OutcomeFilter::default() };
    assert_eq!(list(failed).await, [ids[3]]);
    let of = |bot: &str| OutcomeFilter { bots: Some(vec![bot.to_owned()]), ..OutcomeFilter::default() };
    assert_eq!(list(of("other")).await, [ids[3], ids[2]]);
    assert!(list(of("support")).await.is_empty());
    let after = OutcomeFilter { after: Some((at(30), ids[3])), ..OutcomeFilter::default() };
    assert_eq!(list(after).await, [ids[2]]);

    let found = store.delivery(ids[2]).await.unwrap().unwrap();
    assert_eq!((found.key, found.conversation_id), (other.key.clone(), other.conversation_id));
    assert_eq!((found.delivery.status, found.delivery.error.as_deref()), (DeliveryStatus::Uncertain, Some("cut")));
    assert_eq!(store.delivery(Uuid::now_v7()).await.unwrap(), None);
}

async fn a_person_decides_of_uncertain_deliveries_only(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let turn = first_turn(owner, 1, "ann");
    committed(store.commit(turn.clone()).await.unwrap());
    let [first, second] = [0, 1].map(|part| turn.deliveries[part].delivery_id);
    let resolve = async |id, resolution| store.resolve_delivery(id, resolution, at(50)).await.unwrap();
    for resolution in [Resolution::Sent, Resolution::Resend, Resolution::Failed] {
        assert!(!resolve(first, resolution).await, "it is pending");
        assert!(!resolve(Uuid::now_v7(), resolution).await, "nobody knows it");
    }
    for id in [first, second] {
        store.settle_send(id, &SendResult::Uncertain { error: "cut".to_owned() }, at(40)).await.unwrap();
    }
    assert_eq!(store.pending_delivery(first).await.unwrap(), None);
    assert!(resolve(first, Resolution::Resend).await);
    let pending = store.pending_delivery(first).await.unwrap().unwrap();
    assert_eq!((pending.part(), pending.traceparent()), (&turn.deliveries[0], turn.traceparent.as_deref()));
    assert!(resolve(second, Resolution::Failed).await && !resolve(second, Resolution::Sent).await);
    let rows = store.deliveries_of_turn(turn.turn_id).await.unwrap();
    let found: Vec<_> = rows.iter().map(|row| (row.status, row.error.as_deref(), row.settled_at)).collect();
    let expected = [(DeliveryStatus::Pending, Some("cut"), None), (DeliveryStatus::Failed, Some("cut"), Some(at(50)))];
    assert_eq!(found, expected);
    store.settle_send(first, &SendResult::Uncertain { error: "cut".to_owned() }, at(60)).await.unwrap();
    assert!(resolve(first, Resolution::Sent).await);
    let row = store.delivery(first).await.unwrap().unwrap().delivery;
    assert_eq!((row.status, row.error), (DeliveryStatus::Sent, None));
}

async fn a_stored_message_is_amended(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    let mut turn = first_turn(owner, 1, "ann");
    let photo = || Attachment {
        kind: "photo".to_owned(),
        file_id: None,
        url: Some("https://example.com/1".to_owned()),
        mime_type: None,
        name: None,
    };
    turn.messages[0].attachments = vec![photo()];
    committed(store.commit(turn.clone()).await.unwrap());
    let id = turn.conversation_id.unwrap();
    let mut later = next_turn(&turn, 2);
    later.messages.truncate(1);
    later.messages[0].platform_message_id = Some("p2".to_owned());
    later.messages[0].created_at = at(70);
    later.deliveries.clear();
    later.state = TerminalState::HandedOff;
    committed(store.commit(later).await.unwrap());
    assert_eq!(store.last_said_at(id).await.unwrap(), Some(at(70)));
    assert_eq!(store.last_said_at(Uuid::now_v7()).await.unwrap(), None);

    let stored = async || {
        let messages = store.recent_messages(id, 10).await.unwrap();
        messages.into_iter().map(|message| (message.content, message.attachments.len())).collect::<Vec<_>>()
    };
    let edit = |text: &str, attachments| Some(Replacement { text: text.to_owned(), attachments });
    let amend = async |message: &str, replacement: Option<Replacement>| {
        store.amend_message(id, message, replacement.as_ref(), &owner).await.unwrap()
    };
    assert!(!amend("p3", edit("nobody's", None)).await);
    assert!(amend("p1", edit("edi\u{0}ted", None)).await);
    let answer = turn.messages[1].content.clone();
    let question = "question of ann 2".to_owned();
    assert_eq!(stored().await, [("edi\u{FFFD}ted".to_owned(), 1), (answer.clone(), 0), (question.clone(), 0)]);
    assert!(amend("p1", edit("two", Some(vec![photo(), photo()]))).await);
    assert_eq!(stored().await[0], ("two".to_owned(), 2));
    let snippet = async || store.conversation(id).await.unwrap().unwrap().snippet;
    assert_eq!(snippet().await, Some(question), "the last message is another one");
    for _ in 0..2 {
        assert!(amend("p1", None).await && amend("p2", None).await, "doing it again is safe");
    }
    assert_eq!(stored().await, [("[deleted]".to_owned(), 0), (answer, 0), ("[deleted]".to_owned(), 0)]);
    assert_eq!(snippet().await.as_deref(), Some("[deleted]"));
}

/// As by a process that was paused for longer than its lease.
async fn nobody_but_the_owner_makes_news_known(database: &Database) {
    let (store, before) = (&database.store, database.own(0).await);
    let turn = first_turn(before, 1, "ann");
    committed(store.commit(turn.clone()).await.unwrap());
    let owner = database.own(0).await;
    let (id, key) = (turn.conversation_id.unwrap(), &turn.key);
    let replacement = Replacement { text: "edited".to_owned(), attachments: None };
    let to: Peer = "group-2".parse().unwrap();
    let patch = ConversationPatch { assignee: Some(Some("carol".to_owned())), ..ConversationPatch::default() };
    let news = async |owner: Ownership| {
        [
            store.amend_message(id, "p1", Some(&replacement), &owner).await.map(drop),
            store.note_reachability(key, Some("blocked"), at(50), Some(&owner)).await,
            store.patch_conversation_as_owner(id, &patch, at(50), &owner).await.map(drop),
            store.move_chat(key, &to, at(50), Some(&owner)).await,
        ]
    };
    let known = async || {
        let conversation = store.conversation(id).await.unwrap().unwrap();
        let text = store.recent_messages(id, 10).await.unwrap()[0].content.clone();
        (text, conversation.assignee, store.chat(key).await.unwrap())
    };
    let untouched = known().await;
    for outcome in news(before).await {
        assert!(matches!(outcome, Err(StoreError::Fenced)), "{outcome:?}");
    }
    assert_eq!(known().await, untouched);
    for outcome in news(owner).await {
        outcome.unwrap();
    }
    let (text, assignee, chat) = known().await;
    assert_eq!((text.as_str(), assignee.as_deref()), ("edited", Some("carol")));
    assert_eq!((chat.unreachable.as_deref(), chat.moved_to), (Some("blocked"), Some(to)));
}

async fn every_channel_is_stored(database: &Database) {
    let (store, owner) = (&database.store, database.own(0).await);
    for (channel, sequence) in Channel::ALL.iter().zip(1..) {
        let mut turn = first_turn(owner, sequence, "ann");
        turn.key.channel = *channel;
        let new = turn.new_conversation.as_mut().unwrap();
        new.key.channel = *channel;
        new.platform = channel.as_str().parse().unwrap();
        for part in &mut turn.deliveries {
            part.key.channel = *channel;
        }
        committed(store.commit(turn.clone()).await.unwrap());
        assert_eq!(store.delivery(turn.deliveries[0].delivery_id).await.unwrap().unwrap().key, turn.key);
    }
}
