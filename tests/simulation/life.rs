//! A life: one account, one layer, and some days of bad luck.

use std::{
    collections::BTreeMap,
    error::Error,
    iter::successors,
    ops::AddAssign,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use apsis_auth::{
    ApsisAuthLayer, AuthError, AuthOutcome, ClientCredentials, TokenHandle, default_rejection_rule, emulator::Emulator,
};
use bytes::Bytes;
use fastrand::Rng;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use tokio::{
    runtime::{Builder, Runtime},
    task::{AbortHandle, JoinError, JoinSet},
    time::{Instant, advance, sleep, timeout},
};
use tower::{ServiceExt, timeout::error::Elapsed};

use crate::{
    ear::Ear,
    luck::{self, Blow, OPAQUE},
    memory::Memory,
    probe::{Counts, ID, Probe, Trace, Wall},
    seconds,
    stacks::{Above, Beneath, Client, PERMITS, Permits},
};

pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

// What the crate documents as its defaults.
pub(crate) const BUDGET: usize = 4;
pub(crate) const LOOK_EVERY: Duration = seconds(5);
const MAX_WAIT: Duration = seconds(30);
/// A minute's limit that was heard of many times in a row is waited for for an hour, and as long a caller may hold a permit for
/// which nobody answers.
const LONGEST_RECOVERY: Duration = seconds(3 * 3600);
/// A flight that is lost with its runtime is given up a second after its end.
const GRACE: Duration = seconds(1);

/// How far a life's clock is ahead of the real one, so that no runtime that is made later starts ahead of it.
const AHEAD: Duration = seconds(3600);

const BASE: &str = "https://api.apsis.one";
/// It is refused now and then, for lack of a right.
pub(crate) const REFUSED: &str = "/audience/sections";
const PROFILE: &str = "/audience/keyspaces/com.apsis1.keyspaces.email/profiles/andy.demo%40apsis.com";

const STEPS: usize = 150;
/// At most, of one account.
pub(crate) const PROCESSES: usize = 2;

/// What one life was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Lived {
    pub(crate) time: Duration,
    blows: BTreeMap<&'static str, u64>,
    said: u64,
    counts: Counts,
    tally: Tally,
}

struct Life {
    rng: Rng,
    scene: Scene,
    callers: JoinSet<()>,
    /// To drop some of them.
    aborts: Vec<AbortHandle>,
    spawned: u64,
}

/// What callers have of the world.
#[derive(Clone)]
struct Scene {
    apsis: Emulator,
    wall: Wall,
    probe: Probe,
    above: Above,
    beneath: Beneath,
    permits: Permits,
    processes: Vec<Process>,
    fleet: Fleet,
    tally: Arc<Mutex<Tally>>,
    /// A runtime died or a transport panicked, so a flight may have ended without an answer.
    was_interrupted: Arc<AtomicBool>,
    trace: Trace,
}

#[derive(Clone)]
struct Process {
    client: Client,
    handle: TokenHandle,
}

/// What the processes of an account share.
#[derive(Clone)]
enum Fleet {
    /// There is one process.
    Alone,
    /// A store that nothing happens to.
    Well(Memory),
    /// One that fails as well.
    Failing(Memory),
}

impl Fleet {
    fn draw(rng: &mut Rng) -> Self {
        match rng.u8(..6) {
            0..3 => Self::Alone,
            3 => Self::Well(Memory::default()),
            _ => Self::Failing(Memory::default()),
        }
    }

    fn store(&self) -> Option<&Memory> {
        match self {
            Self::Alone => None,
            Self::Well(store) | Self::Failing(store) => Some(store),
        }
    }

    fn failing(&self) -> Option<&Memory> {
        match self {
            Self::Failing(store) => Some(store),
            Self::Alone | Self::Well(_) => None,
        }
    }

    fn processes(&self) -> usize {
        if matches!(self, Self::Alone) { 1 } else { PROCESSES }
    }
}

/// What became of the callers.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    served: u64,
    /// Got another answer than a success.
    refused: u64,
    /// Failed for want of a token.
    without_token: u64,
    /// Failed with the API's connection.
    failed: u64,
    /// Had a token at hand, so nothing to wait for.
    at_once: u64,
    /// Had one that another process had asked for.
    adopted: u64,
    writes_begun: u64,
    /// Their caller was there to the end. Others were dropped, or out of time.
    writes_ended: u64,
    /// And heard a yes.
    writes_accepted: u64,
}

/// A life by this seed.
pub(crate) fn live(seed: u64, trace: &Trace) -> Lived {
    let mut rng = Rng::with_seed(seed);
    let mut runtime = runtime();
    let (said, secret) = (Arc::default(), Arc::default());
    let _listening = Ear::listening(&secret, &said, trace);
    let mut life = runtime.block_on(async {
        advance(AHEAD).await;
        trace.start();
        let scene = Scene::new(seed, &mut rng, trace);
        secret.set(scene.apsis.api_key().client_secret().to_owned()).unwrap();
        Life { rng, scene, callers: JoinSet::new(), aborts: Vec::new(), spawned: 0 }
    });
    let started = runtime.block_on(life.begin());
    let (mut blows, mut deaths) = (BTreeMap::new(), 0);
    for _ in 0..STEPS {
        let blow = runtime.block_on(life.step());
        if matches!(blow, Blow::RuntimeDies) {
            deaths += 1;
            runtime = life.die(runtime, in_step_with(started, deaths));
        }
        *blows.entry(blow.name()).or_default() += 1;
        trace.assert_kept();
    }
    let time = runtime.block_on(life.recover(started));
    trace.assert_kept();
    let (counts, tally) = (life.scene.probe.seen().counts, *life.scene.tally.lock().unwrap());
    runtime.block_on(life.end());
    assert_eq!(runtime.metrics().num_alive_tasks(), 0, "a task is left");
    trace.assert_kept();
    Lived { time, blows, said: said.load(Ordering::Relaxed), counts, tally }
}

impl Life {
    async fn begin(&mut self) -> Instant {
        let profile = Request::post(format!("{BASE}{PROFILE}")).header(ID, 0).body(Full::default()).unwrap();
        let created = self.scene.processes[0].client.clone().oneshot(profile).await.unwrap();
        assert_eq!(created.status(), StatusCode::CREATED);
        Instant::now()
    }

    /// One thing happens, and some time passes.
    async fn step(&mut self) -> Blow {
        // It is when there is trouble that people try to mend it.
        let is_grounded = |process: &Process| process.handle.snapshot().grounded.is_some();
        let is_forced = self.scene.processes.iter().any(is_grounded) && self.rng.u8(..6) == 0;
        let blow = if is_forced {
            Blow::ForcedRenewal
        } else {
            luck::strike(&mut self.rng, &self.scene.apsis, self.scene.fleet.failing())
        };
        let blow = match blow {
            Blow::RuntimeDies if !self.scene.beneath.outlives_a_runtime() => Blow::Cancellation,
            blow => blow,
        };
        self.scene.trace.add(format_args!("{blow:?}"));
        match blow {
            Blow::Callers(callers) => (0..callers).for_each(|_| self.call()),
            Blow::ForcedRenewal => {
                self.call();
                self.force();
            }
            Blow::Cancellation => self.cancel(),
            Blow::TransportPanics => {
                self.scene.was_interrupted.store(true, Ordering::Relaxed);
                self.scene.probe.panic_once();
            }
            Blow::WallJumps(by) => self.scene.wall.jump(by),
            Blow::MachineSleeps(by) => {
                self.scene.wall.jump(by);
                if let Some(store) = self.scene.fleet.store() {
                    store.sleep(Duration::from_secs(by.unsigned_abs()));
                }
            }
            Blow::ApiMisbehaves(of_hundred, lasts) => self.scene.probe.misbehave(of_hundred, lasts),
            Blow::RuntimeDies | Blow::Apsis(_) => {}
        }
        sleep(luck::pause(&mut self.rng)).await;
        self.scene.check_waiters().await;
        self.hear_of_those_who_ended();
        self.scene.check_permits();
        self.scene.check_store();
        blow
    }

    /// A panic stays in its task, and is looked for here.
    fn hear_of_those_who_ended(&mut self) {
        while let Some(ended) = self.callers.try_join_next() {
            self.scene.hear_of(&ended);
        }
        self.aborts.retain(|caller| !caller.is_finished());
    }

    fn call(&mut self) {
        self.spawned += 1;
        let call = Call::draw(self.spawned, &mut self.rng);
        self.aborts.push(self.callers.spawn(call.run(self.scene.clone())));
    }

    fn force(&mut self) {
        let scene = self.scene.clone();
        let handle = scene.processes[self.rng.usize(..scene.processes.len())].handle.clone();
        let forced = self.callers.spawn(async move {
            let began = Instant::now();
            let ended = handle.renew().await;
            let took = began.elapsed();
            scene.trace.promise(took <= MAX_WAIT + GRACE, format_args!("a forced renewal took {took:?}"));
            if let Err(error) = ended {
                scene.check_words(&error);
            }
        });
        self.aborts.push(forced);
    }

    /// Some are dropped, wherever they wait.
    fn cancel(&mut self) {
        for caller in &self.aborts {
            if self.rng.bool() {
                caller.abort();
            }
        }
    }

    /// All that runs goes with its runtime, callers and a flight under way. The next one goes on at the same time.
    fn die(&mut self, runtime: Runtime, next: Runtime) -> Runtime {
        let now = runtime.block_on(async { Instant::now() });
        self.scene.was_interrupted.store(true, Ordering::Relaxed);
        self.hear_of_those_who_ended();
        self.callers = JoinSet::new();
        self.aborts.clear();
        drop(runtime);
        next.block_on(async { advance(now.saturating_duration_since(Instant::now())).await });
        next
    }

    /// When bad luck is over, everybody is served again, without a restart and within hours.
    async fn recover(&mut self, started: Instant) -> Duration {
        let scene = self.scene.clone();
        scene.trace.add("bad luck is over");
        luck::heal(&scene.apsis, scene.fleet.store());
        scene.probe.heal();
        let healed = Instant::now();
        let mut served = 0;
        while served < 4 && healed.elapsed() < LONGEST_RECOVERY {
            sleep(seconds(600)).await;
            self.spawned += 1;
            let request = Request::get(format!("{BASE}/audience/keyspaces")).header(ID, self.spawned);
            let called = scene.process_of(self.spawned).client.clone().oneshot(request.body(Full::default()).unwrap());
            let answer = timeout(seconds(600), called).await;
            served = if matches!(answer, Ok(Ok(answer)) if answer.status() == StatusCode::OK) { served + 1 } else { 0 };
        }
        scene.trace.promise(served == 4, "who calls after the bad luck is served");
        scene.check_waiters().await;
        started.elapsed()
    }

    /// The last handle is dropped, while a token request is under way.
    async fn end(mut self) {
        self.callers.abort_all();
        while let Some(ended) = self.callers.join_next().await {
            self.scene.hear_of(&ended);
        }
        self.scene.check_permits();
        let Scene { apsis, probe, processes, tally, trace, .. } = self.scene;
        // Then there is room in the budget.
        sleep(seconds(120)).await;
        apsis.set_token_delay(seconds(10));
        let renewing = tokio::spawn({
            let handle = processes[0].handle.clone();
            async move { handle.renew().await.map(drop) }
        });
        sleep(seconds(1)).await;
        trace.promise(probe.seen().in_token_endpoint() == 1, "a renewal that is forced makes a token request");
        renewing.abort();
        drop((renewing.await, processes));
        // A flight that nobody waits for hears of it.
        sleep(Duration::from_millis(1)).await;
        trace.promise(probe.seen().in_token_endpoint() == 0, "a token request goes on for nobody");

        let (accepted, tally) = (probe.seen().counts.accepted, *tally.lock().unwrap());
        let written = apsis.profile("com.apsis1.keyspaces.email", "andy.demo@apsis.com").unwrap().events as u64;
        let unheard = tally.writes_begun - tally.writes_ended;
        trace.promise(
            (accepted..=accepted + unheard).contains(&written)
                && (tally.writes_accepted..=tally.writes_accepted + unheard).contains(&accepted),
            format_args!("{written} writes, the API said yes to {accepted}, and callers heard {tally:?}"),
        );
    }
}

impl Scene {
    fn new(seed: u64, rng: &mut Rng, trace: &Trace) -> Self {
        let (apsis, wall) = (Emulator::new(), Wall::new());
        apsis.set_api_limit(10_000);
        let (above, beneath) = (Above::draw(rng), Beneath::draw(rng));
        let permits = beneath.permits(rng);
        let fleet = Fleet::draw(rng);
        trace.add(format_args!("{} processes, {above:?} above, {beneath:?} beneath", fleet.processes()));
        let is_one = matches!(fleet, Fleet::Alone | Fleet::Well(_));
        let (at_once, trace) = (beneath.sends_at_once(), trace.clone());
        let probe = Probe::new(seed, apsis.clone(), wall.clone(), trace.clone(), at_once, permits, is_one);
        let mut scene = Self {
            apsis,
            wall,
            probe,
            above,
            beneath,
            permits,
            processes: Vec::new(),
            fleet,
            tally: Arc::default(),
            was_interrupted: Arc::default(),
            trace,
        };
        scene.processes = (0..scene.fleet.processes()).map(|number| scene.process(number, rng)).collect();
        scene
    }

    fn process(&self, number: usize, rng: &mut Rng) -> Process {
        let (key, probe) = (self.apsis.api_key(), self.probe.of(number));
        let credentials = ClientCredentials::new(key.client_id(), key.client_secret()).unwrap();
        let (now, random) = (self.wall.clone(), Mutex::new(rng.fork()));
        let mut builder = ApsisAuthLayer::builder(credentials, BASE)
            .transport(self.beneath.transport(&probe, self.permits))
            .wall_clock(move || now.now())
            // So that all pauses are whole milliseconds, as timers are.
            .random(move || f64::from(random.lock().unwrap().u8(..100)) / 100.0);
        if let Some(store) = self.fleet.store() {
            builder = builder.store(store.clone());
        }
        let layer = builder.build().unwrap();
        Process { client: self.above.client(&layer, &self.beneath, &probe, &self.trace), handle: layer.handle() }
    }

    fn process_of(&self, id: u64) -> &Process {
        &self.processes[usize::try_from(id).unwrap() % self.processes.len()]
    }

    /// Whoever reads the store learns no secret.
    fn check_store(&self) {
        let Some(sealed) = self.fleet.store().and_then(Memory::sealed) else { return };
        for secret in ["eyJ", OPAQUE, self.apsis.api_key().client_secret()] {
            let is_in = sealed.windows(secret.len()).any(|window| window == secret.as_bytes());
            self.trace.promise(!is_in, "a secret is stored");
        }
    }

    /// Law 27: who waits for a token holds none.
    fn check_permits(&self) {
        if let Some(left) = self.beneath.permits_left() {
            let taken = self.permits.taken(&self.probe.seen());
            self.trace.promise(
                left + taken == PERMITS,
                format_args!("{left} permits are left, and {taken} requests under way"),
            );
        }
    }

    /// Who waits for a token has none at hand, and something to wait for.
    async fn check_waiters(&self) {
        const MOMENT: Duration = Duration::from_millis(1);

        // Those who were told a moment ago need one to go on.
        for _ in 0..3 {
            if self.waits_in_vain().is_none() {
                return;
            }
            sleep(MOMENT).await;
        }
        if let Some(why) = self.waits_in_vain() {
            self.trace.broken(why);
        }
    }

    fn waits_in_vain(&self) -> Option<String> {
        self.processes.iter().enumerate().find_map(|(number, process)| {
            let mut seen = self.probe.seen();
            let waiters = seen.calls.iter().filter(|(_, call)| call.process == number && !call.is_in_api);
            let waiters: Vec<_> = waiters.map(|(id, call)| (*id, call.clone())).collect();
            if waiters.is_empty() || !self.beneath.is_free(&seen, self.permits) {
                return None;
            }
            seen.counts.waiters += waiters.len() as u64;
            drop(seen);
            let (snapshot, jumped) = (process.handle.snapshot(), self.wall.jumped());
            // This may start a refresh that is due, so only where somebody waits.
            let current = snapshot.token.as_ref().filter(|token| token.usable).and_then(|_| process.current());
            let may_wait = snapshot.in_flight || snapshot.grounded.is_some();
            waiters.into_iter().find_map(|(id, call)| {
                // A wall clock that jumps back makes a token good again, which nobody is told.
                let was_there = jumped.is_none_or(|jumped| jumped < call.since);
                if !may_wait {
                    Some(format!("request {id} waits for nothing"))
                } else if was_there && current.is_some() && current != call.stamped {
                    Some(format!("request {id} waits, with a good token at hand"))
                } else {
                    None
                }
            })
        })
    }

    fn hear_of(&self, ended: &Result<(), JoinError>) {
        let panicked = ended.as_ref().is_err_and(JoinError::is_panic);
        self.trace.promise(!panicked, format_args!("a caller panicked: {ended:?}"));
    }

    /// What people read of an error, and what programs print of the layer.
    fn check_words(&self, error: &AuthError) {
        let is_explained = self.was_interrupted.load(Ordering::Relaxed) || !matches!(error, AuthError::Interrupted);
        self.trace.promise(is_explained, "a flight ended without an answer, and nothing was wrong");
        let chain = successors(Some(error as &dyn Error), |&error| error.source());
        let words = chain.map(ToString::to_string).collect::<Vec<_>>().join(": ");
        let handles: Vec<_> =
            self.processes.iter().map(|process| (&process.handle, process.handle.snapshot())).collect();
        let printed = format!("{words} {error:?} {handles:?}");
        for secret in ["eyJ", OPAQUE, self.apsis.api_key().client_secret()] {
            self.trace.promise(!printed.contains(secret), format_args!("a secret is printed: {printed}"));
        }
    }
}

impl Process {
    /// The token, if there is one without waiting.
    fn current(&self) -> Option<HeaderValue> {
        match pin!(self.handle.get()).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(token) => token.ok().map(|token| token.header_value()),
            Poll::Pending => None,
        }
    }
}

/// One request of one caller.
struct Call {
    id: u64,
    route: Route,
    deadline: Duration,
}

#[derive(Clone, Copy, PartialEq)]
enum Route {
    Read,
    /// For which the key may lack the right.
    ReadRefused,
    Write,
}

impl Call {
    fn draw(id: u64, rng: &mut Rng) -> Self {
        let route = match rng.u8(..3) {
            0 => Route::Read,
            1 => Route::ReadRefused,
            _ => Route::Write,
        };
        // Some are in a hurry; the others wait for an API that never answers, but not for ever.
        let deadline = if rng.u8(..3) == 0 { Duration::from_millis(rng.u64(10..40_000)) } else { seconds(3600) };
        Self { id, route, deadline }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let request = match self.route {
            Route::Read => Request::get(format!("{BASE}/audience/keyspaces")),
            Route::ReadRefused => Request::get(format!("{BASE}{REFUSED}")),
            Route::Write => Request::post(format!("{BASE}{PROFILE}/events")).header("content-type", "application/json"),
        };
        let body = if self.route == Route::Write { Full::from(r#"{"event":"visited"}"#) } else { Full::default() };
        request.header(ID, self.id).body(body).unwrap()
    }

    async fn run(self, scene: Scene) {
        scene.tally.lock().unwrap().writes_begun += u64::from(self.route == Route::Write);
        let process = scene.process_of(self.id);
        let token = process.handle.snapshot().token.filter(|token| token.usable);
        let (had_token, is_adopted) = (token.is_some(), token.is_some_and(|token| token.adopted));
        let (began, jammed) = (Instant::now(), scene.probe.seen().jammed_for());
        let ended = timeout(self.deadline, process.client.clone().oneshot(self.request())).await;
        let took = began.elapsed();
        let jammed = scene.probe.seen().jammed_for().saturating_sub(jammed);
        let sent = scene.probe.take(self.id);
        if had_token && scene.beneath.is_always_ready() {
            let at_once = sent.first == Some(began);
            scene.trace.promise(at_once, format_args!("request {} waited, with a token at hand", self.id));
        }
        let calls = u32::try_from(sent.calls.len()).unwrap();
        scene.trace.promise(calls <= scene.above.calls(), format_args!("request {} became {calls}", self.id));
        let waited = sent.waited(took, jammed);
        scene.trace.promise(
            // Who was dropped before the layer was called has waited for a turn alone.
            waited <= calls.max(1) * (MAX_WAIT + GRACE + scene.beneath.longest_turn()),
            format_args!("request {} waited for {waited:?} beside the API, in {calls} calls", self.id),
        );
        let Ok(result) = ended else { return };
        if matches!(&result, Err(error) if error.is::<Elapsed>()) {
            // Dropped where it was, by the layer above.
            return;
        }
        let heard_yes = matches!(&result, Ok(answer) if answer.status() == StatusCode::CREATED);
        scene.trace.promise(
            heard_yes == (sent.accepted == 1),
            format_args!("request {} was accepted {} times, and its caller heard {result:?}", self.id, sent.accepted),
        );
        let mut tally = scene.tally.lock().unwrap();
        tally.at_once += u64::from(had_token);
        tally.adopted += u64::from(is_adopted);
        tally.writes_ended += u64::from(self.route == Route::Write);
        match result {
            Ok(answer) => self.heard(&scene, &mut tally, &answer),
            Err(error) => match error.downcast_ref::<AuthError>() {
                Some(error) => {
                    tally.without_token += 1;
                    scene.check_words(error);
                }
                None => tally.failed += 1,
            },
        }
    }

    fn heard(&self, scene: &Scene, tally: &mut Tally, answer: &Response<Full<Bytes>>) {
        let status = answer.status();
        tally.served += u64::from(status.is_success());
        tally.refused += u64::from(!status.is_success());
        tally.writes_accepted += u64::from(self.route == Route::Write && status == StatusCode::CREATED);
        let outcome = answer.extensions().get::<AuthOutcome>();
        if let Some(AuthOutcome::NotRenewed(error)) = outcome {
            scene.check_words(error);
        }
        let has_copy = !matches!(outcome, Some(AuthOutcome::NotReplayable));
        scene.trace.promise(has_copy, format_args!("request {} could not be sent again", self.id));
        let is_rejected = default_rejection_rule(status, answer.headers()).is_some();
        scene.trace.promise(
            outcome.is_some() || !is_rejected,
            format_args!("request {} was rejected, and its caller is not told what the layer did", self.id),
        );
    }
}

impl Lived {
    /// Whether enough happened for the promises to have been put to the test.
    pub(crate) fn is_eventful(&self) -> bool {
        let Tally { served, refused, without_token, failed, at_once, adopted, writes_accepted, .. } = self.tally;
        let Counts { attempts, failed_attempts, replays, repeats, waiters, jams, attempts_with_permit, .. } =
            self.counts;
        let Counts { misfortunes, strangers, .. } = self.counts;
        let callers = [served, refused, without_token, failed, at_once, adopted, writes_accepted];
        let probed =
            [attempts, failed_attempts, replays, repeats, waiters, jams, attempts_with_permit, misfortunes, self.said];
        callers.into_iter().chain(probed).min() > Some(100)
            && self.blows.len() == luck::BLOWS
            && self.blows.values().min() > Some(&20)
            && strangers > 10
    }
}

impl AddAssign for Lived {
    fn add_assign(&mut self, other: Self) {
        self.time += other.time;
        for (name, times) in other.blows {
            *self.blows.entry(name).or_default() += times;
        }
        self.said += other.said;
        self.counts += other.counts;
        self.tally += other.tally;
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        self.served += other.served;
        self.refused += other.refused;
        self.without_token += other.without_token;
        self.failed += other.failed;
        self.at_once += other.at_once;
        self.adopted += other.adopted;
        self.writes_begun += other.writes_begun;
        self.writes_ended += other.writes_ended;
        self.writes_accepted += other.writes_accepted;
    }
}

/// A runtime's timers go off at whole milliseconds from its start. Of two runtimes these are a part of one apart, and that
/// decides what comes first. So that a seed always decides the same, a later one is always a little behind.
fn in_step_with(first: Instant, number: u64) -> Runtime {
    const STEP: u128 = 20_000;

    loop {
        let runtime = runtime();
        let start = runtime.block_on(async { Instant::now() });
        let behind = (start + AHEAD).saturating_duration_since(first).as_nanos() % 1_000_000;
        if behind / STEP == number.into() && behind % STEP < STEP / 2 {
            return runtime;
        }
    }
}

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}
