//! Who owns which partitions: the processes that live, the leases they hold, and the taking over itself.
//!
//! Refuses to believe clocks or leases: ownership is an epoch in the database, which every commit names; a lease only keeps
//! two processes from doing the same work. Invariant: taking over raises the epoch first, then removes the old owner's
//! consumers, then reads on from where everything is terminal, so that an owner that was only believed dead can neither
//! commit nor be given a message.

use std::convert::Infallible;
use std::error::Error;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::store::{StoreError, Takeover};
use crate::stream::StreamError;

pub use participant::Participant;
pub use set_back::{Doubt, rewind_if_set_back};
pub use sole::Sole;
pub use takeover::take_over;

mod balance;
mod bucket;
mod holdings;
mod participant;
mod set_back;
#[cfg(test)]
mod simulation;
mod sole;
mod takeover;
mod view;

/// A partition taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owned {
    pub takeover: Takeover,
    /// Everything at and below this sequence is done.
    pub after: u64,
    /// Whoever had it before was gone without having given it back.
    pub after_death: bool,
}

/// What the scheduler is told.
#[derive(Debug)]
pub enum Assignment {
    /// Work on this partition: the epoch is raised, the old owner's consumers are removed, what was left behind is prepared.
    Take(Owned),
    /// Stop working on this partition: let its running tasks finish or stop them, within the grace, then answer. Dropping
    /// `released` is an answer too. A partition that is not worked on is answered at once.
    Give { partition: u16, released: oneshot::Sender<()> },
}

/// What the scheduler reports back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Notice {
    /// A commit or the check of a consumer found a newer owner: the scheduler has stopped working on the partition.
    Lost { partition: u16 },
}

/// How one process takes part in the work on one stream.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Names the process among all that work on the stream: letters, digits, `-` and `_`; a new one at each start.
    pub member_id: String,
    /// How long after its last sign of life a process counts as living; whole seconds, at least 1.
    pub lease_ttl: Duration,
    /// How often a process gives a sign of life; well below `lease_ttl`.
    pub renew_interval: Duration,
    /// The stream's partitions.
    pub partitions: u16,
    /// Copies of each lease, as of the streams: 1, 3 or 5.
    pub replicas: usize,
}

impl Settings {
    /// Takeover of a killed process's partitions within 2.5 s, at the price of two small messages per second.
    #[must_use]
    pub fn new(member_id: String, partitions: u16, replicas: usize) -> Self {
        Self {
            member_id,
            lease_ttl: Duration::from_secs(2),
            renew_interval: Duration::from_millis(500),
            partitions,
            replicas,
        }
    }
}

/// What is done for partitions after their epochs are raised and before anybody works on them, such as publishing what
/// their owner before left behind.
pub trait Prepare: Send + Sync + 'static {
    type Error: Error + Send + Sync + 'static;

    /// After an error the partitions are taken over anew and prepared again.
    ///
    /// # Errors
    /// The implementation's own.
    fn prepare(&self, owned: &[Owned]) -> impl Future<Output = Result<(), Self::Error>> + Send;
}

/// Nothing to prepare.
impl Prepare for () {
    type Error = Infallible;

    async fn prepare(&self, _owned: &[Owned]) -> Result<(), Infallible> {
        Ok(())
    }
}

/// Why partitions could not be taken over, or a process cannot take part.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("the epochs cannot be raised")]
    Store(#[source] StoreError),
    #[error("the consumers of the owner before cannot be removed")]
    Stream(#[source] StreamError),
    #[error("what the owner before left behind cannot be prepared")]
    Prepare(#[source] Box<dyn Error + Send + Sync>),
    #[error("the member id {0:?} is not one word of letters, digits, `-` and `_`")]
    MemberId(String),
    #[error("the bucket {bucket} of members and leases cannot be used")]
    Bucket {
        bucket: String,
        #[source]
        source: async_nats::Error,
    },
    #[error("the scheduler is gone")]
    SchedulerGone,
}
