//! What every HTTP server of this process shares.

mod unread;

pub use unread::{UnreadBody, UnreadBounds};
