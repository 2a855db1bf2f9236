//! Messages that were open when the process that had them died: how many deaths each has seen.
//!
//! Refuses to say what follows from it. Invariant: only the partition's owner counts, and once in its epoch, so no death is counted twice.

use super::{Backend, Ownership, Store, StoreError, answered, on};

impl Store {
    /// Counts a death against messages that the partition's owner before left behind when it died, and gives how many deaths
    /// each has seen. The first two are counted whether or not a message was being worked on, of which nothing is written
    /// until then; later ones only where [`Store::note_begun`] says so. Doing it again in the same epoch counts nothing.
    ///
    /// # Errors
    /// As [`StoreError::Query`], and [`StoreError::Fenced`]: then nothing was counted.
    pub async fn charge_deaths(
        &self,
        dedupe_ids: &[String],
        owner: &Ownership,
    ) -> Result<Vec<(String, u32)>, StoreError> {
        on!(self.charge_deaths(dedupe_ids, owner))
    }

    /// How many deaths messages have seen, those that have seen any.
    ///
    /// # Errors
    /// As [`StoreError::Query`].
    pub async fn deaths(&self, dedupe_ids: &[String]) -> Result<Vec<(String, u32)>, StoreError> {
        on!(self.deaths(dedupe_ids))
    }

    /// Notes that a message that has seen deaths is being worked on, or is not any more, though it has not ended.
    ///
    /// # Errors
    /// As [`StoreError::Query`], and [`StoreError::Fenced`].
    pub async fn note_begun(&self, dedupe_id: &str, is_begun: bool, owner: &Ownership) -> Result<(), StoreError> {
        on!(self.note_begun(dedupe_id, is_begun, owner))
    }
}
