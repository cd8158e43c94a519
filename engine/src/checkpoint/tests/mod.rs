//! Round trips, and every bad input with its message.
