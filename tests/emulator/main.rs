//! What the emulator promises to the tests that rely on it.

mod audience;
mod limits;
mod rejections;
mod scripts;
mod sockets;
mod support;
mod time;
mod tokens;

use apsis_auth::emulator::{Answer, ApiKey, Emulator, EmulatorBody, EmulatorError, EmulatorServer};

#[test]
fn every_part_can_be_sent_and_shared() {
    fn check<T: Send + Sync + Unpin + std::fmt::Debug + 'static>() {}
    check::<Answer>();
    check::<ApiKey>();
    check::<Emulator>();
    check::<EmulatorBody>();
    check::<EmulatorError>();
    check::<EmulatorServer>();
}
