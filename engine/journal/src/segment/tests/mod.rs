mod damage;
mod faults;
mod salvaged;
pub(crate) mod story;
mod whole;
