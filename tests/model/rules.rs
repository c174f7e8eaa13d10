//! What the protocol rests on. Each rule can be taken away, to see which law breaks without it.

#[allow(clippy::struct_excessive_bools, reason = "each is a rule of its own")]
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    // Of the store.
    /// While one process has a lease, no other one gets one.
    pub(crate) leases_exclude: bool,
    /// A lease ends by itself.
    pub(crate) leases_end: bool,
    /// A store that was emptied does not begin with 1 again.
    pub(crate) fences_come_from_a_clock: bool,
    /// What was overtaken is not published.
    pub(crate) publishing_minds_the_fence: bool,
    /// Of one fence there is one entry.
    pub(crate) a_fence_publishes_once: bool,
    /// A pause is not cut short by the end of another attempt.
    pub(crate) pauses_are_kept: bool,
    // Of the process.
    /// What it adopted or published last, it does not adopt.
    pub(crate) is_done_with_what_it_saw: bool,
    /// It does not adopt what was asked for before its own token.
    pub(crate) minds_the_age: bool,
    /// It does not wait for ever for the holder of a lease.
    pub(crate) patience_ends: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            leases_exclude: true,
            leases_end: true,
            fences_come_from_a_clock: true,
            publishing_minds_the_fence: true,
            a_fence_publishes_once: true,
            pauses_are_kept: true,
            is_done_with_what_it_saw: true,
            minds_the_age: true,
            patience_ends: true,
        }
    }
}
