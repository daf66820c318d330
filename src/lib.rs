//! recant
