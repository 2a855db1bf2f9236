//! What lies on the streams: whatever another version has left there is passed over, or read and written again as it was.

#![no_main]

use libfuzzer_sys::fuzz_target;
use turnwise::message::{ConversationKey, Envelope, OutboundPart};
use turnwise::stream::Progress;
use turnwise_fuzz::assert_reads_back;

fuzz_target!(|payload: &[u8]| {
    if let Ok(envelope) = serde_json::from_slice::<Envelope>(payload) {
        assert_reads_back(&envelope);
    }
    if let Ok(part) = serde_json::from_slice::<OutboundPart>(payload) {
        let written = serde_json::to_vec(&part).expect("it is written");
        assert_eq!(serde_json::from_slice::<OutboundPart>(&written).expect("what was written is read"), part);
    }
    let _ = Progress::decode(payload);
    if let Ok(key) = String::from_utf8_lossy(payload).parse::<ConversationKey>() {
        assert_eq!(key.to_string().parse::<ConversationKey>().expect("what was written is read"), key);
    }
});
