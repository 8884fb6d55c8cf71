//! Who may do what, by the user of the process that asks.
//!
//! | user | may |
//! |---|---|
//! | root, the engine's own user | everything, also end connections of others; the engine's own user takes part in a server only if it is the server's |
//! | `--allow-parent-uid` | be the parent, and what is in the next lines |
//! | the parent's (the server's) | register sessions and ClientGuids, take offers |
//! | `--allow-uid` | open handles, connect out, hand its own connections over to its own processes |
//! | any other | nothing |
//!
//! A connection that comes in belongs to the server whose parameters were in force when it came:
//! only handles of that server's user and of root get it. Registrations are kept by user, so that
//! nobody can take the place of another user's, or keep it from being taken.

use super::handle::HandleId;
use super::routing::Refused;
use super::Engine;

/// The user who may do everything.
pub(super) const ROOT: u32 = 0;

impl Engine {
    /// Root and the engine's own user.
    pub(super) fn is_trusted(&self, uid: u32) -> bool {
        uid == ROOT || uid == self.uid
    }

    /// May ask for anything at all.
    pub(super) fn is_allowed(&self, uid: u32) -> bool {
        self.may_be_parent(uid) || self.config.allow_uids.contains(&uid)
    }

    /// May open the parent handle, and see what others do.
    pub(super) fn may_be_parent(&self, uid: u32) -> bool {
        self.is_trusted(uid) || self.config.allow_parent_uids.contains(&uid)
    }

    /// Whether a user takes part in the server. Without a parent (its processes may connect again
    /// before it, after the engine was started anew) everyone may who could be it.
    pub(super) fn check_serves(&self, uid: u32) -> Result<(), Refused> {
        let serves = uid == ROOT
            || match self.clients.parent_user() {
                Some(server) => uid == server,
                None => self.may_be_parent(uid),
            };
        if serves {
            return Ok(());
        }
        let text = match self.clients.parent_user() {
            Some(server) => format!(
                "connections that come in are for user {server}, whose process is the parent, not \
                 for user {uid}"
            ),
            None => format!(
                "user {uid} may not be the server: start the engine with --allow-parent-uid {uid}"
            ),
        };
        Err((libc::EPERM, text))
    }

    /// The handle of a server that has registered a ClientGuid: the server's own users come first.
    pub(super) fn owner_of_guid(&self, server: u32, guid: [u8; 16]) -> Option<HandleId> {
        let users = [server, ROOT];
        let mut found = users
            .iter()
            .filter_map(|&uid| self.by_guid.get(&(uid, guid)));
        found.next().copied()
    }

    /// The handle of a server that has registered a session.
    pub(super) fn owner_of_session(&self, server: u32, session: u64) -> Option<HandleId> {
        let users = [server, ROOT];
        let mut found = users
            .iter()
            .filter_map(|&uid| self.by_session.get(&(uid, session)));
        found.next().copied()
    }
}
