//! How many tokens something will take of a model's context, before any server has counted it.
//!
//! Refuses to know tokenizers: there is one per model family, and most servers do not say which is theirs. An estimate from
//! bytes errs on the high side, and [`Calibration`] corrects it by what a server reports. Invariant: a calibrated estimate
//! stays within fixed bounds of the plain one, whatever a server claims.

use serde_json::Value;

use super::{ModelMessage, ModelRequest, ToolSpec};

/// An upper estimate for one message of `bytes`: a third of its bytes, and 30 % and 4 tokens on top. Characters divided by
/// four, as is often done, falls short by up to five times for Chinese, emoji and JSON.
#[must_use]
pub fn of_bytes(bytes: usize) -> u64 {
    (u64::try_from(bytes).unwrap_or(u64::MAX).div_ceil(3).saturating_mul(13)).div_ceil(10).saturating_add(4)
}

/// An upper estimate for everything that is sent with a request.
#[must_use]
pub fn of_request(request: &ModelRequest) -> u64 {
    let system = request.system.as_ref().map_or(0, |system| of_bytes(system.len()));
    let messages = request.messages.iter().map(of_message);
    messages.fold(system.saturating_add(of_tools(&request.tools)), u64::saturating_add)
}

/// An upper estimate for one message.
#[must_use]
pub fn of_message(message: &ModelMessage) -> u64 {
    of_bytes(match message {
        ModelMessage::User { content } => content.len(),
        ModelMessage::Assistant { content, tool_calls } => {
            let calls = tool_calls.iter().map(|call| call.id.len() + call.name.len() + call.arguments.len());
            content.len() + calls.sum::<usize>()
        }
        ModelMessage::Tool { call_id, content } => call_id.len() + content.len(),
    })
}

/// An upper estimate for the descriptions of tools, which are sent with every request: their schemas are often longer than
/// the conversation.
#[must_use]
pub fn of_tools(tools: &[ToolSpec]) -> u64 {
    let one = |tool: &ToolSpec| of_bytes(tool.name.len() + tool.description.len() + json_bytes(&tool.parameters));
    tools.iter().map(one).fold(0, u64::saturating_add)
}

fn json_bytes(value: &Value) -> usize {
    value.to_string().len()
}

/// How the tokens that one model's server counts relate to the estimates here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Calibration {
    /// Tokens counted for 1,000 estimated ones.
    per_thousand: u64,
    observations: u32,
}

/// What a server's count looks like beside the estimate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    Plausible,
    /// Far fewer than were sent: the server may have cut the prompt. Ollama does so at its default context, without a word.
    Capped,
}

/// Tokenizers range from 11 bytes a token (long English words, repetition) to one token a byte (scripts that the model
/// never learned), the estimate being 0.43 tokens a byte.
const PER_THOUSAND_MIN: u64 = 200;
const PER_THOUSAND_MAX: u64 = 2_400;

/// Below this the fixed words of a chat template outweigh the text.
const ESTIMATE_MIN: u64 = 100;

/// The smallest default context of a server that truncates silently is 2,048 tokens; half of that leaves room for its answer.
const CAP_MIN: u64 = 1_024;

/// Twice Ollama's default context of 4,096: an uncalibrated estimate this large and a count below [`PER_THOUSAND_MIN`] of it
/// cannot both be right.
const CERTAINLY_LONG: u64 = 8_192;

/// So many counts make an expectation.
const OBSERVATIONS_MIN: u32 = 3;

impl Default for Calibration {
    fn default() -> Self {
        Self { per_thousand: 1_000, observations: 0 }
    }
}

impl Calibration {
    /// Learns from one call: `estimated` as [`of_request`] has it, `reported` as the server counted the same prompt. A count
    /// that looks capped teaches nothing.
    pub fn observe(&mut self, estimated: u64, reported: u64) -> Counted {
        if estimated < ESTIMATE_MIN || reported == 0 {
            return Counted::Plausible;
        }
        let counted = self.judge(estimated, reported);
        if counted == Counted::Plausible {
            let seen = reported.saturating_mul(1_000) / estimated;
            let seen = seen.clamp(PER_THOUSAND_MIN, PER_THOUSAND_MAX);
            // Too low an estimate costs a refused call, too high a one only some history: upwards half the way, down a fifth.
            self.per_thousand = match seen > self.per_thousand {
                true => (self.per_thousand + seen).div_ceil(2),
                false => (self.per_thousand * 4 + seen).div_ceil(5),
            };
            self.observations = self.observations.saturating_add(1);
        }
        counted
    }

    /// An estimate, corrected.
    #[must_use]
    pub fn apply(&self, estimated: u64) -> u64 {
        estimated.saturating_mul(self.per_thousand).div_ceil(1_000)
    }

    /// Under 60 % of what earlier counts let expect is more than a change of language does.
    fn judge(&self, estimated: u64, reported: u64) -> Counted {
        let unlike_before = self.observations >= OBSERVATIONS_MIN
            && reported >= CAP_MIN
            && reported.saturating_mul(10) < self.apply(estimated).saturating_mul(6);
        let impossible =
            estimated >= CERTAINLY_LONG && reported.saturating_mul(1_000) < estimated.saturating_mul(PER_THOUSAND_MIN);
        if unlike_before || impossible { Counted::Capped } else { Counted::Plausible }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_that_is_sent_counts() {
        let call = super::super::ToolCall { id: "c1".to_owned(), name: "f".to_owned(), arguments: "{}".to_owned() };
        let mut request = ModelRequest {
            messages: vec![ModelMessage::User { content: "hello!".to_owned() }],
            ..ModelRequest::default()
        };
        assert_eq!(of_request(&request), 7);
        request.system = Some("123".to_owned());
        assert_eq!(of_request(&request), 13);
        request.messages.push(ModelMessage::Assistant { content: "1".to_owned(), tool_calls: vec![call] });
        assert_eq!(of_request(&request), 20);
        let parameters = json!({ "type": "object" });
        request.tools.push(ToolSpec { name: "f".to_owned(), description: "1234".to_owned(), parameters });
        assert_eq!(of_request(&request), 35);
    }

    #[test]
    fn a_servers_counts_correct_the_estimate() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.apply(1_000), 1_000);
        for _ in 0..20 {
            assert_eq!(calibration.observe(1_000, 500), Counted::Plausible);
        }
        assert!((500..=510).contains(&calibration.apply(1_000)), "{calibration:?}");
        calibration.observe(1_000, 900);
        assert!((700..=710).contains(&calibration.apply(1_000)), "one low estimate moves it half the way");
        let before = calibration.clone();
        calibration.observe(50, 100);
        calibration.observe(1_000, 0);
        assert_eq!(calibration, before, "too little to learn from");
    }

    #[test]
    fn a_capped_prompt_is_noticed_and_not_learned_from() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.observe(20_000, 2_048), Counted::Capped, "more bytes a token than there are");
        assert_eq!(calibration, Calibration::default());
        for _ in 0..OBSERVATIONS_MIN {
            assert_eq!(calibration.observe(2_000, 1_000), Counted::Plausible);
        }
        let before = calibration.clone();
        assert_eq!(calibration.observe(15_000, 4_096), Counted::Capped);
        assert_eq!(calibration, before);
        assert_eq!(calibration.observe(15_000, 8_000), Counted::Plausible);
        assert_eq!(calibration.observe(1_500, 600), Counted::Plausible, "no server's context is that small");
    }

    proptest! {
        #[test]
        fn no_server_moves_the_estimate_out_of_bounds(
            counts in proptest::collection::vec((any::<u64>(), any::<u64>()), 0..50),
            estimated in 0_u64..1_000_000_000,
        ) {
            let mut calibration = Calibration::default();
            for (estimated, reported) in counts {
                calibration.observe(estimated, reported);
            }
            let corrected = calibration.apply(estimated);
            prop_assert!(corrected >= estimated / 5 && corrected <= estimated * 24 / 10 + 1);
        }
    }
}
