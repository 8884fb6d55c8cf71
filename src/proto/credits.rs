//! Receive credits: how many receives are posted, how many of them the peer knows of, and when
//! to give it more (`[MS-SMBD] 3.1.5.9`).
//!
//! The specification has one counter, ReceiveCredits. It is split here in two, because receives
//! are posted in batches and granted when a message leaves:
//!
//! - `posted`: receives the fabric holds for messages to come;
//! - `granted`: those that the peer was told of. `granted <= posted` always holds, so that a
//!   peer which obeys its credits always finds a receive.
//!
//! Both count down with every message received. The level aimed at is what the peer asks for,
//! bounded by ReceiveCreditMax and by the owner's limit.
//!
//! **Reserve.** The last send credit may only be spent on a message that grants something
//! (`[MS-SMBD] 3.1.5.4`). Whoever has granted all it could has nothing left for that message and
//! stalls. So ordinary grants stop one short of the level, and the one held back goes with the
//! message that spends the last credit. A peer that asks for very few credits needs them all;
//! then the stall cannot last, see [`Credits::empty_grant`].

/// Receive-side credit state.
#[derive(Debug, Clone)]
pub(super) struct Credits {
    /// ReceiveCreditTarget: what the peer asked for last.
    target: u16,
    /// ReceiveCreditMax.
    max: u16,
    /// Owner's limit.
    limit: u16,
    posted: u16,
    granted: u16,
    /// A question for receives that is not answered yet.
    asked: u16,
    /// The caller posted fewer than asked; do not ask again before it has room.
    refused: bool,
}

/// Is a message without payload due, only to grant credits?
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EmptyGrant {
    /// The peer has enough, or there is nothing to give.
    No,
    /// Now. As the message gives the peer more credits than the one of ours it uses up, an
    /// exchange of such messages dies out by itself.
    Now,
    /// The peer could be starved, but there is only one credit to give. Two sides that do this
    /// at once would go on forever, so the caller has to slow down.
    Single,
}

impl Credits {
    /// Before the negotiation one receive is wanted, for the negotiate message.
    pub(super) fn new(max: u16) -> Self {
        Self {
            target: 1,
            max,
            limit: u16::MAX,
            posted: 0,
            granted: 0,
            asked: 0,
            refused: false,
        }
    }

    pub(super) fn set_target(&mut self, target: u16) {
        self.target = target;
    }

    pub(super) fn set_limit(&mut self, limit: u16) {
        self.limit = limit.max(LIMIT_MIN);
    }

    /// Receives aimed at, and the most ever granted. Lowering it takes nothing back.
    pub(super) fn level(&self) -> u16 {
        self.target.min(self.max).min(self.limit)
    }

    pub(super) fn target(&self) -> u16 {
        self.target
    }

    pub(super) fn posted(&self) -> u16 {
        self.posted
    }

    pub(super) fn granted(&self) -> u16 {
        self.granted
    }

    /// A receive has been used up by a negotiate message, which needs no credit. False when none
    /// was posted.
    pub(super) fn on_negotiate_received(&mut self) -> bool {
        let had = self.posted > 0;
        self.posted = self.posted.saturating_sub(1);
        had
    }

    /// A receive has been used up by a Data Transfer. False when the peer had no credit for it.
    pub(super) fn on_data_received(&mut self) -> bool {
        let had = self.granted > 0;
        self.granted = self.granted.saturating_sub(1);
        self.posted = self.posted.saturating_sub(1);
        had
    }

    /// How many receives to ask the caller for, 0 if none. Small gaps are left to grow unless
    /// `urgent`, so that receives are posted in batches. With `is_last_credit` a message waits
    /// that will need something to grant.
    pub(super) fn wanted(&mut self, urgent: bool, is_last_credit: bool) -> u16 {
        if self.refused {
            return 0;
        }
        let level = self.level();
        let mut gap = level.saturating_sub(self.posted);
        if gap == 0 && is_last_credit && self.posted == self.granted && self.posted < self.max {
            gap = 1;
        }
        if gap == 0
            || (gap < level / POST_BATCH_DIVISOR && !urgent && !is_last_credit && self.granted > 1)
        {
            return 0;
        }
        self.asked = gap;
        gap
    }

    /// The caller posted that many of the receives asked for.
    pub(super) fn on_posted(&mut self, posted: u16) {
        let posted = posted.min(self.asked);
        self.posted += posted;
        self.refused = posted < self.asked;
        self.asked = 0;
    }

    /// The caller did not answer the question; take it as a refusal.
    pub(super) fn expire_question(&mut self) {
        if self.asked > 0 {
            self.on_posted(0);
        }
    }

    /// The caller has room again.
    pub(super) fn on_room(&mut self) {
        self.refused = false;
    }

    /// Credits an ordinary message may grant.
    pub(super) fn grantable(&self) -> u16 {
        let bound = self.level().min(self.posted);
        let reserve = u16::from(bound >= RESERVE_FROM);
        (bound - reserve).saturating_sub(self.granted)
    }

    /// Credits that may be granted without keeping any back: by the Negotiate Response, and by
    /// the answer to a probe when there are no others.
    pub(super) fn grantable_with_reserve(&self) -> u16 {
        self.level().min(self.posted).saturating_sub(self.granted)
    }

    /// Credits that the message spending our last send credit may grant.
    ///
    /// When the peer has all it asked for, still one: it may have lowered its target (or the
    /// owner the limit) below what it holds, and then no other rule would ever let the message
    /// go. `[MS-SMBD] 3.1.5.9` demands a receive to be posted in this case. The peer's holdings
    /// cannot grow by this, as it needs a message of its own to give us the next credit.
    pub(super) fn grantable_with_last_credit(&self) -> u16 {
        match self.grantable_with_reserve() {
            0 => self.posted.saturating_sub(self.granted).min(1),
            grantable => grantable,
        }
    }

    /// The peer is told of `count` more receives, which one of the `grantable` above yielded.
    pub(super) fn on_granted(&mut self, count: u16) {
        self.granted += count;
        debug_assert!(self.granted <= self.posted);
    }

    /// Whether the peer has used up most of what it had, and more than one credit can be given.
    pub(super) fn is_starving(&self) -> bool {
        self.granted <= self.level() / 4 && self.grantable() >= 2
    }

    /// Whether the peer needs a grant so much that an empty message has to carry it.
    ///
    /// Refilling only when the target rises stalls; refilling after every message answers empty
    /// messages with empty messages forever. In between: refill when half of the possible is
    /// used up, but not for less than two credits. A peer down to one credit may be unable to
    /// send at all (last-credit rule), so it gets a single one too, at the caller's pace.
    pub(super) fn empty_grant(&self) -> EmptyGrant {
        let credits = self.grantable();
        let full = self.granted + credits;
        if credits >= 2 && self.granted <= full / 2 {
            EmptyGrant::Now
        } else if credits >= 1 && self.granted <= 1 {
            EmptyGrant::Single
        } else {
            EmptyGrant::No
        }
    }
}

/// Receives are posted when an eighth of the level is missing.
const POST_BATCH_DIVISOR: u16 = 8;
/// Two sides that lower what they give to one credit, while each holds one, could neither spend it
/// (nothing to grant) nor get another. One side with two to give is enough.
const LIMIT_MIN: u16 = 2;
/// From this many possible credits on one is held back.
const RESERVE_FROM: u16 = 3;

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(target: u16, max: u16) -> Credits {
        let mut c = Credits::new(max);
        c.set_target(target);
        let asked = c.wanted(true, false);
        c.on_posted(asked);
        c.on_granted(c.grantable_with_reserve());
        c
    }

    #[test]
    fn level_is_the_smallest_of_three() {
        let mut c = filled(300, 255);
        assert_eq!((c.level(), c.posted(), c.granted()), (255, 255, 255));
        c.set_target(10);
        assert_eq!(c.level(), 10);
        assert_eq!(c.granted(), 255, "nothing is taken back");
        assert_eq!(c.grantable_with_reserve(), 0);
        c.set_limit(0);
        assert_eq!(c.level(), 2);
    }

    #[test]
    fn receives_are_posted_in_batches() {
        let mut c = filled(255, 255);
        for _ in 0..30 {
            assert!(c.on_data_received());
            assert_eq!(c.wanted(false, false), 0);
        }
        assert!(c.on_data_received());
        assert_eq!(c.wanted(false, false), 31);
        c.on_posted(31);
        assert!(c.on_data_received());
        assert_eq!(c.wanted(true, false), 1);
    }

    #[test]
    fn a_refusal_stops_the_questions_until_there_is_room() {
        let mut c = Credits::new(255);
        c.set_target(10);
        assert_eq!(c.wanted(true, false), 10);
        c.on_posted(4);
        assert_eq!(c.posted(), 4);
        assert_eq!(c.wanted(true, false), 0);
        c.on_room();
        assert_eq!(c.wanted(true, false), 6);
        c.on_posted(u16::MAX);
        assert_eq!(c.posted(), 10, "an answer above the question is cut");
        assert!(c.on_negotiate_received());
        assert_eq!(c.wanted(true, false), 1);
        c.expire_question();
        assert_eq!((c.posted(), c.wanted(true, false)), (9, 0));
    }

    #[test]
    fn a_message_without_credit_is_noticed() {
        let mut c = filled(2, 2);
        assert!(c.on_data_received());
        assert!(c.on_data_received());
        assert!(!c.on_data_received());
        let mut none = Credits::new(1);
        assert!(!none.on_negotiate_received());
    }

    #[test]
    fn one_credit_is_held_back_for_the_last_message() {
        let mut c = filled(10, 255);
        assert!(c.on_data_received());
        let n = c.wanted(true, false);
        c.on_posted(n);
        assert_eq!(c.grantable(), 0);
        assert_eq!(c.grantable_with_reserve(), 1);
    }

    #[test]
    fn the_last_credit_always_finds_something_to_grant() {
        let mut c = filled(10, 11);
        c.set_limit(5);
        assert_eq!(c.wanted(true, false), 0);
        assert_eq!(c.grantable_with_last_credit(), 0);
        assert_eq!(c.wanted(false, true), 1);
        c.on_posted(1);
        assert_eq!((c.grantable(), c.grantable_with_reserve()), (0, 0));
        assert_eq!(c.grantable_with_last_credit(), 1);
        c.on_granted(1);
        assert_eq!(c.wanted(false, true), 0, "ReceiveCreditMax holds");
    }

    #[test]
    fn empty_grants_come_at_half() {
        let mut c = filled(10, 255);
        let mut due = Vec::new();
        for _ in 0..10 {
            assert!(c.on_data_received());
            let n = c.wanted(true, false);
            c.on_posted(n);
            due.push(c.empty_grant());
        }
        assert_eq!(due[..5], [EmptyGrant::No; 5]);
        assert_eq!(due[5..], [EmptyGrant::Now; 5]);
    }

    #[test]
    fn tiny_targets_get_single_credits() {
        for target in [1, 2, 3] {
            let mut c = filled(target, 255);
            while c.granted() > 1 || c.granted() == target {
                assert!(c.on_data_received());
            }
            let n = c.wanted(true, false);
            c.on_posted(n);
            assert_eq!(c.empty_grant(), EmptyGrant::Single, "target {target}");
        }
    }
}
