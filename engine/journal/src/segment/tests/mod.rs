mod damage;
mod faults;
pub(crate) mod story;
mod whole;
