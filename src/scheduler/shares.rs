//! Which bot's lane may start next: the bots that have something to do share the turns at once by their weights.
//!
//! Pure. Invariants, kept by the properties of [`super::lanes`]: among the bots that have ready lanes and are below their own
//! bound, the one with the fewest running turns for its weight is next, and of several those take turns, by weight as
//! well. Nothing is kept of a bot but its place here; there are as many as were ever configured.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use super::bursts::Rules;
use super::lanes::LaneKey;

/// A bot's place among the bots.
pub(super) type BotIndex = usize;

/// How far a start moves a bot of weight 1 behind the others; divisible by every weight up to 100 but for a rounding below a
/// millionth.
const STRIDE: u64 = 1 << 32;

#[derive(Debug)]
struct Bot {
    rules: Arc<Rules>,
    /// Lanes in the order in which they may start: a lane that finished a turn goes to the end, so that a long one does not
    /// hold up the others.
    ready: VecDeque<LaneKey>,
    running: usize,
    /// Grows with each start, the slower the heavier the bot.
    pass: u64,
}

/// The bots of a scheduler, by the first tokens of their lanes.
#[derive(Debug)]
pub(super) struct Shares {
    rules: HashMap<String, Rules>,
    bots: Vec<Bot>,
    places: HashMap<Box<str>, BotIndex>,
    /// The pass of the bot that started last: one that comes back to work starts from here, and has saved nothing up.
    pass: u64,
}

impl Shares {
    pub(super) fn new(rules: HashMap<String, Rules>) -> Self {
        Self { rules, bots: Vec::new(), places: HashMap::new(), pass: 0 }
    }

    /// The bot of a lane: everything before its last token.
    pub(super) fn bot_of(&mut self, lane: &str) -> BotIndex {
        let name = lane.rsplit_once('.').map_or(lane, |(bot, _)| bot);
        if let Some(place) = self.places.get(name) {
            return *place;
        }
        let rules = Arc::new(self.rules.get(name).cloned().unwrap_or_default());
        self.bots.push(Bot { rules, ready: VecDeque::new(), running: 0, pass: self.pass });
        self.places.insert(name.into(), self.bots.len() - 1);
        self.bots.len() - 1
    }

    pub(super) fn rules(&self, bot: BotIndex) -> Arc<Rules> {
        Arc::clone(&self.bots[bot].rules)
    }

    /// The lane may start from now on.
    pub(super) fn ready(&mut self, bot: BotIndex, lane: &LaneKey) {
        let bot = &mut self.bots[bot];
        if bot.ready.is_empty() {
            bot.pass = bot.pass.max(self.pass);
        }
        bot.ready.push_back(Arc::clone(lane));
    }

    /// The lane that may start next. It is not ready any more, whether or not it then starts.
    pub(super) fn next(&mut self) -> Option<LaneKey> {
        let candidates = self.bots.iter().enumerate().filter(|(_, bot)| bot.may_start());
        let (next, _) = candidates.min_by(|(_, left), (_, right)| left.load(right).then(left.pass.cmp(&right.pass)))?;
        self.bots[next].ready.pop_front()
    }

    pub(super) fn started(&mut self, bot: BotIndex) {
        let bot = &mut self.bots[bot];
        bot.running += 1;
        self.pass = self.pass.max(bot.pass);
        bot.pass += STRIDE / u64::from(bot.rules.weight.max(1));
    }

    pub(super) fn ended(&mut self, bot: BotIndex) {
        self.bots[bot].running -= 1;
    }

    /// Forgets the ready lanes that are not to be kept.
    pub(super) fn retain(&mut self, keep: impl Fn(&LaneKey) -> bool) {
        self.bots.iter_mut().for_each(|bot| bot.ready.retain(&keep));
    }
}

impl Bot {
    fn may_start(&self) -> bool {
        !self.ready.is_empty() && self.rules.max_running.is_none_or(|max| self.running < max)
    }

    /// Compares the turns running for the weight.
    fn load(&self, other: &Self) -> std::cmp::Ordering {
        let scaled = |bot: &Self, by: &Self| bot.running as u64 * u64::from(by.rules.weight.max(1));
        scaled(self, other).cmp(&scaled(other, self))
    }
}

#[cfg(test)]
impl Shares {
    /// Turns running, weight and whether it may start, of each bot.
    pub(super) fn loads(&self) -> Vec<(usize, u32, bool)> {
        self.bots.iter().map(|bot| (bot.running, bot.rules.weight, bot.may_start())).collect()
    }

    pub(super) fn is_idle(&self) -> bool {
        self.bots.iter().all(|bot| bot.ready.is_empty() && bot.running == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One turn at a time, always work for everybody: starts are shared by weight, and evenly over time.
    #[test]
    fn bots_take_turns_by_weight() {
        let rules = |weight| Rules { weight, ..Rules::default() };
        let weights = [("web.heavy", 3), ("web.light", 1)];
        let mut shares = Shares::new(weights.map(|(bot, weight)| (bot.to_owned(), rules(weight))).into());
        let lanes: Vec<LaneKey> = vec!["web.heavy.user-1".into(), "web.light.user-1".into(), "web.other.user-1".into()];
        for lane in &lanes {
            let bot = shares.bot_of(lane);
            shares.ready(bot, lane);
        }
        let mut starts = Vec::new();
        for _ in 0..50 {
            let lane = shares.next().unwrap();
            let bot = shares.bot_of(&lane);
            shares.started(bot);
            shares.ended(bot);
            shares.ready(bot, &lane);
            starts.push(bot);
        }
        for window in starts.chunks(5) {
            let of = |bot| window.iter().filter(|start| **start == bot).count();
            assert_eq!((of(0), of(1), of(2)), (3, 1, 1), "{starts:?}");
        }
    }
}
