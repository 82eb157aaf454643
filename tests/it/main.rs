//! Behaviour as a user sees it: real sockets, the real executable, real peers.

mod cli;
mod control;
