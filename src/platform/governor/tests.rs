//! The governor beside a platform that counts for itself, over random loads, delays and answers, all in virtual time.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use proptest::prelude::*;

use super::meter::pace;
use super::*;

const BOT: &str = "b";

const WHOLE_BOT: SendLimit = SendLimit { messages: 30, per: Duration::from_secs(1), burst: 1 };
const CHAT: SendLimit = SendLimit { messages: 60, per: Duration::from_secs(60), burst: 3 };
const GROUP: SendLimit = SendLimit { messages: 20, per: Duration::from_secs(60), burst: 5 };
const LIMITS: SendLimits = SendLimits { bot: Some(WHOLE_BOT), chat: Some(CHAT), group: Some(GROUP) };

/// A lane's peer and how many parts wait for it from the beginning.
type Load = Vec<(Peer, usize)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Ask(usize),
    Answer(usize, Instant),
}

/// What the platform saw.
#[derive(Debug, Default)]
struct Seen {
    /// Arrivals, by chat.
    chats: BTreeMap<Peer, Vec<Instant>>,
    /// All arrivals.
    bot: Vec<Instant>,
    lasted: Duration,
    asked: usize,
}

/// Sends everything. `delays` are, in turn, how late a lane asks again, how long a call is on its way, and how long its answer.
fn send(governor: &mut Governor, load: &Load, delays: &[(u64, u64, u64)]) -> Seen {
    let start = Instant::now();
    let lanes: Vec<Arc<str>> = (0..load.len()).map(|lane| Arc::from(lane.to_string())).collect();
    let mut left: Vec<usize> = load.iter().map(|(_, parts)| *parts).collect();
    let mut events: BinaryHeap<_> = (0..load.len()).map(|lane| Reverse((start, Event::Ask(lane)))).collect();
    let mut delays = delays.iter().cycle();
    let mut seen = Seen::default();
    while let Some(Reverse((now, event))) = events.pop() {
        let (late, there, back) = delays.next().copied().unwrap_or_default();
        let (lane, wants) = match event {
            Event::Ask(lane) => (lane, left[lane] > 0),
            Event::Answer(lane, begun) => {
                governor.ended(BOT, &load[lane].0, begun, Ended::Answered, now);
                (lane, left[lane] > 0)
            }
        };
        if !wants {
            continue;
        }
        seen.asked += 1;
        match governor.ask(BOT, &load[lane].0, &lanes[lane], left[lane] - 1, now) {
            Permission::At(until) => {
                assert!(until > now, "a wait ends later");
                events.push(Reverse((until + Duration::from_millis(late), Event::Ask(lane))));
            }
            Permission::Go { .. } => {
                left[lane] -= 1;
                let arrives = now + Duration::from_millis(there);
                seen.bot.push(arrives);
                seen.chats.entry(chat(&load[lane].0)).or_default().push(arrives);
                seen.lasted = seen.lasted.max(arrives - start);
                events.push(Reverse((arrives + Duration::from_millis(back), Event::Answer(lane, now))));
            }
        }
    }
    seen
}

fn assert_within(limit: SendLimit, mut calls: Vec<Instant>, whose: &str) {
    calls.sort_unstable();
    let window = limit.messages as usize;
    for (first, beyond) in calls.iter().zip(calls.iter().skip(window)) {
        assert!(*beyond - *first >= limit.per, "{whose}: {} in {:?}", window + 1, *beyond - *first);
    }
}

fn assert_paced(limit: SendLimit, calls: &[Instant], whose: &str) {
    let mut calls = calls.to_vec();
    calls.sort_unstable();
    let mut expected = calls[0];
    for call in calls {
        let earliest = pace(limit.interval(), limit.burst, expected).unwrap_or(call);
        assert!(call >= earliest, "{whose}: {:?} too early", earliest - call);
        expected = expected.max(call) + limit.interval();
    }
}

/// How long a chat with so many parts takes when nobody else is there.
fn alone(parts: usize, limit: SendLimit) -> Duration {
    let parts = u32::try_from(parts).unwrap();
    let of_windows = limit.per * ((parts - 1) / limit.messages);
    of_windows.max(limit.interval() * parts.saturating_sub(limit.burst))
}

fn peer() -> impl Strategy<Value = Peer> {
    prop_oneof![
        4 => (0..40_u8).prop_map(|id| Peer::User(id.to_string())),
        1 => (0..3_u8).prop_map(|id| Peer::Group(format!("-{id}"))),
        1 => (0..3_u8, 0..4_u8).prop_map(|(group, topic)| Peer::Topic {
            group: format!("-{group}"),
            topic: topic.to_string(),
        }),
    ]
}

/// Each lane once, as in life.
fn load() -> impl Strategy<Value = Load> {
    prop::collection::btree_map(peer(), 1..12_usize, 1..40).prop_map(|lanes| lanes.into_iter().collect())
}

proptest! {
    #[test]
    fn no_window_has_more_than_its_limit(
        load in load(),
        mut delays in prop::collection::vec((0..400_u64, 0..300_u64, 0..300_u64), 1..50),
    ) {
        // Some call is as fast as one can be.
        delays.push((0, 0, 0));
        let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
        let seen = send(&mut governor, &load, &delays);
        for (chat, calls) in seen.chats {
            let limit = if matches!(chat, Peer::Group(_)) { GROUP } else { CHAT };
            assert_paced(limit, &calls, &chat.to_string());
            assert_within(limit, calls, &chat.to_string());
        }
        assert_within(WHOLE_BOT, seen.bot, "the bot");
    }

    #[test]
    fn a_bot_with_many_chats_is_no_slower_than_its_limit(chats in 30..2_000_usize) {
        let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
        let load: Load = (0..chats).map(|chat| (Peer::User(chat.to_string()), 1)).collect();
        let seen = send(&mut governor, &load, &[(0, 0, 0)]);
        let windows = u32::try_from(chats).unwrap_or(u32::MAX) / 30;
        let allowed = Duration::from_secs(1) * windows;
        prop_assert!(seen.lasted <= allowed * 105 / 100 + Duration::from_secs(1), "{:?} for {allowed:?}", seen.lasted);
        prop_assert!(seen.asked <= 4 * chats, "asked {} times", seen.asked);
    }

    #[test]
    fn a_chat_is_no_slower_than_its_limit(parts in 1..200_u32, is_group: bool) {
        let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
        let (peer, limit) = if is_group {
            (Peer::Group("-1".to_owned()), GROUP)
        } else {
            (Peer::User("1".to_owned()), CHAT)
        };
        let seen = send(&mut governor, &vec![(peer, parts as usize)], &[(0, 0, 0)]);
        let allowed = alone(parts as usize, limit);
        // The bot's own pace lies between the parts of a burst.
        let slack = Duration::from_millis(35) * limit.burst;
        prop_assert!(seen.lasted <= allowed * 105 / 100 + slack, "{:?} for {allowed:?}", seen.lasted);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The heaviest mixes are those of a few people and groups with much to say among many with little.
    #[test]
    fn a_mix_of_chats_is_no_slower_than_its_tightest_limit(
        people in prop::collection::vec(1..60_usize, 0..200),
        groups in prop::collection::vec(1..100_usize, 0..25),
        late in prop::collection::vec((0..8_u64, Just(0), Just(0)), 1..20),
    ) {
        let mut load: Load = Vec::new();
        load.extend(people.iter().enumerate().map(|(id, parts)| (Peer::User(id.to_string()), *parts)));
        load.extend(groups.iter().enumerate().map(|(id, parts)| (Peer::Group(format!("-{id}")), *parts)));
        prop_assume!(!load.is_empty());
        let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
        let seen = send(&mut governor, &load, &late);
        let total: usize = load.iter().map(|(_, parts)| parts).sum();
        let of_bot = WHOLE_BOT.interval() * u32::try_from(total).unwrap();
        let of_chats = load.iter().map(|(peer, parts)| alone(*parts, if matches!(peer, Peer::Group(_)) { GROUP } else { CHAT }));
        let allowed = of_chats.max().unwrap().max(of_bot);
        prop_assert!(seen.lasted <= allowed * 105 / 100 + Duration::from_secs(1), "{:?} for {allowed:?}", seen.lasted);
        prop_assert!(seen.asked <= 12 * total, "asked {} times for {total}", seen.asked);
    }
}

#[test]
fn a_refused_chat_waits_alone_and_several_stop_the_bot() {
    let mut governor = Governor::new([(BOT.to_owned(), SendLimits { bot: None, chat: None, group: None })]);
    let lanes: Vec<Arc<str>> = (0..5).map(|lane| Arc::from(format!("lane {lane}"))).collect();
    let peers: Vec<Peer> = (0..5).map(|id| Peer::User(id.to_string())).collect();
    let now = Instant::now();
    let second = Duration::from_secs(1);
    let go = Permission::Go { waited: Duration::ZERO };

    governor.refused(BOT, &peers[0], &lanes[0], Scope::Chat, 30 * second, now);
    assert_eq!(governor.ask(BOT, &peers[0], &lanes[0], 0, now), Permission::At(now + 30 * second));
    assert_eq!(governor.ask(BOT, &peers[1], &lanes[1], 0, now), go);
    let later = now + 30 * second;
    assert_eq!(governor.ask(BOT, &peers[0], &lanes[0], 0, later), Permission::Go { waited: 30 * second });

    for chat in 0..3 {
        governor.refused(BOT, &peers[chat], &lanes[chat], Scope::Chat, 2 * second, later);
    }
    assert_eq!(governor.ask(BOT, &peers[4], &lanes[4], 0, later), Permission::At(later + 2 * second));
    let later = later + 10 * second;
    governor.refused(BOT, &peers[0], &lanes[0], Scope::Chat, 2 * second, later);
    assert_eq!(governor.ask(BOT, &peers[3], &lanes[3], 0, later), go, "earlier refusals are forgotten");
    governor.refused(BOT, &peers[0], &lanes[0], Scope::Bot, 2 * second, later);
    assert_eq!(governor.ask(BOT, &peers[3], &lanes[3], 0, later), Permission::At(later + 2 * second));
}

#[test]
fn the_topics_of_a_group_share_its_limit() {
    let mut governor = Governor::new([(BOT.to_owned(), SendLimits { bot: None, ..LIMITS })]);
    let now = Instant::now();
    let free = (0..8)
        .filter(|topic: &u8| {
            let peer = Peer::Topic { group: "-1".to_owned(), topic: topic.to_string() };
            let lane = Arc::from(topic.to_string());
            matches!(governor.ask(BOT, &peer, &lane, 0, now), Permission::Go { .. })
        })
        .count();
    assert_eq!(free, 5, "the burst of a group");
}

#[test]
fn what_nobody_waits_for_leaves_room_for_replies() {
    let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
    let (start, peer) = (Instant::now(), |id: u32| Peer::User(id.to_string()));
    assert!(!governor.spare(BOT, &peer(1), start), "what replies need is not known here");
    governor.share(64, 64);
    let spared = (0..30).filter(|id| governor.spare(BOT, &peer(*id), start)).count();
    assert_eq!(spared, 15, "half of the bot's limit");
    let lane: Arc<str> = "lane".into();
    let go = Permission::Go { waited: Duration::ZERO };
    assert_eq!(governor.ask(BOT, &peer(1), &lane, 0, start), go, "a reply takes no turn after them");

    let later = start + Duration::from_secs(2);
    assert!(!governor.spare(BOT, &peer(1), later), "its reply is on its way");
    governor.ended(BOT, &peer(1), start, Ended::Answered, later);
    assert!(governor.spare(BOT, &peer(1), later));
    let lane: Arc<str> = "other".into();
    for id in 2..5 {
        governor.ask(BOT, &peer(id), &lane, 0, later);
    }
    assert!(!governor.spare(BOT, &peer(9), later), "replies wait for the bot");
    governor.refused(BOT, &peer(7), &lane, Scope::Bot, Duration::from_secs(9), later);
    assert!(!governor.spare(BOT, &peer(8), later + Duration::from_secs(8)));
}

#[test]
fn a_process_keeps_to_its_share_of_the_bot() {
    let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
    governor.share(16, 64);
    let load: Load = (0..75).map(|chat| (Peer::User(chat.to_string()), 1)).collect();
    let seen = send(&mut governor, &load, &[(0, 0, 0)]);
    assert!(seen.lasted >= Duration::from_millis(74 * 1_000 * 4 / 30), "{:?}", seen.lasted);
    assert!(seen.lasted <= Duration::from_millis(74 * 1_000 * 4 / 30 * 105 / 100), "{:?}", seen.lasted);
}

#[test]
fn a_share_that_grows_is_used_at_once() {
    let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
    governor.share(1, 64);
    let (start, second) = (Instant::now(), Duration::from_secs(1));
    let ask = |governor: &mut Governor, id: u32, now: Instant| {
        governor.ask(BOT, &Peer::User(id.to_string()), &Arc::from(id.to_string()), 0, now)
    };
    let told: Vec<Permission> = (0..100).map(|id| ask(&mut governor, id, start)).collect();
    let soon = |permission: &&Permission| matches!(permission, Permission::At(at) if *at <= start + 5 * second);
    assert_eq!(
        told.iter().filter(soon).count(),
        99,
        "places are up to three minutes away, and looked after until then"
    );
    governor.share(64, 64);
    let later = start + 5 * second;
    let places = (1..100).filter_map(|id| match ask(&mut governor, id, later) {
        Permission::Go { .. } => None,
        Permission::At(at) => Some(at - later),
    });
    let last = places.max().unwrap();
    assert!(last <= 4 * second, "{last:?} for 99 replies at 30 a second");
}

/// A reply of several parts beside single ones that come as fast as they leave, five seconds of them waiting.
#[test]
fn patience_ends_beside_single_replies() {
    let mut governor = Governor::new([(BOT.to_owned(), SendLimits { chat: None, group: None, ..LIMITS })]);
    let (start, interval) = (Instant::now(), Duration::from_secs(1) * MARGIN_PERCENT / 100 / 30);
    let (lane, peer): (Arc<str>, _) = ("several".into(), Peer::User("several".to_owned()));
    let mut single = 0_u32;
    let mut come = |governor: &mut Governor, now: Instant| {
        single += 1;
        governor.ask(BOT, &Peer::User(single.to_string()), &Arc::from(single.to_string()), 0, now);
    };
    (0..150).for_each(|_| come(&mut governor, start));
    let (mut now, mut again) = (start, start);
    let waited = loop {
        assert!(now - start < Duration::from_secs(60), "it waits for ever");
        come(&mut governor, now);
        if now >= again {
            match governor.ask(BOT, &peer, &lane, 2, now) {
                Permission::Go { waited } => break waited,
                Permission::At(at) => again = at,
            }
        }
        now += interval;
    };
    assert!(waited <= Duration::from_secs(16), "{waited:?}");
}

#[test]
fn what_is_over_is_forgotten() {
    let mut governor = Governor::new([(BOT.to_owned(), LIMITS)]);
    let start = Instant::now();
    for chat in 0..20_000_u32 {
        let (now, peer) = (start + Duration::from_millis(100) * chat, Peer::User(chat.to_string()));
        let permission = governor.ask(BOT, &peer, &Arc::from(chat.to_string()), 0, now);
        assert_eq!(permission, Permission::Go { waited: Duration::ZERO });
        governor.ended(BOT, &peer, now, Ended::Answered, now);
    }
    let chats = governor.accounts[BOT].chats.len();
    assert!(chats < 2 * SWEEP_FROM, "{chats} chats are remembered");
}
