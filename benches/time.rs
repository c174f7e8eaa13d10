//! The time that one request takes, from the call to the answer, its making not included.
//!
//! ```sh
//! cargo bench --bench time
//! ```
//!
//! Four variants: the bare service, which answers at once; a header that never changes; the layer without replay; the layer
//! with replay, which is the default. Each with an empty body and one of 1 KiB, by a service that is kept (`reused`) and by
//! one that is cloned for each request (`cloned`), as a server does that has one client for all.
//!
//! Criterion runs one variant after the other, so a machine whose speed changes within a minute shows in the comparison.

mod measure;

use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use http::{Request, Response};
use tower::Service;

use crate::measure::{Api, Body, StaticHeader, ours, request, send};

criterion_group! {
    name = time;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_millis(1500));
    targets = measure_all
}
criterion_main!(time);

fn measure_all(criterion: &mut Criterion) {
    measure_one(criterion, "bare", &Api);
    measure_one(criterion, "static header", &StaticHeader::new(Api));
    measure_one(criterion, "without replay", &ours(Api, false));
    measure_one(criterion, "with replay", &ours(Api, true));
}

fn measure_one<S>(criterion: &mut Criterion, variant: &str, service: &S)
where
    S: Service<Request<Body>, Response = Response<()>> + Clone,
{
    let mut group = criterion.benchmark_group(variant);
    for length in [0, 1024] {
        let body = Bytes::from(vec![b'x'; length]);
        let make = || request(body.clone());
        let mut reused = service.clone();
        group.bench_function(BenchmarkId::new("reused", length), |bencher| {
            bencher.iter_batched(make, |request| send(&mut reused, request), BatchSize::SmallInput);
        });
        group.bench_function(BenchmarkId::new("cloned", length), |bencher| {
            bencher.iter_batched(make, |request| send(&mut service.clone(), request), BatchSize::SmallInput);
        });
    }
    group.finish();
}
