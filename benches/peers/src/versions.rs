//! The versions that are measured, as Cargo's lock file has them.

use crate::figures::Figures;

const LOCK: &str = include_str!("../Cargo.lock");

const MEASURED: [&str; 13] = [
    "apsis-auth",
    "tower-http",
    "tower",
    "tokio",
    "http",
    "google-cloud-auth",
    "azure_identity",
    "object_store",
    "gcp_auth",
    "yup-oauth2",
    "kube-client",
    "aws-smithy-runtime",
    "cf-gears-toolkit-auth",
];

pub(crate) fn versions() -> Figures {
    let mut figures = Figures::new("versions", &["crate", "version"]);
    for name in MEASURED {
        figures.add([name.to_owned(), version(name).to_owned()]);
    }
    figures
}

/// Of the package that this one depends on by that name, of which the lock file may have several versions.
fn version(name: &str) -> &'static str {
    let this = packages().find(|package| field(package, "name") == Some(env!("CARGO_PKG_NAME")));
    let dependencies = this.and_then(|package| package.split_once("dependencies = [")).expect("it has dependencies").1;
    let dependency = dependencies
        .lines()
        .filter_map(|line| line.trim().trim_end_matches(',').trim_matches('"').split_once(' '))
        .find(|(dependency, _)| *dependency == name);
    // The version is named where there are several.
    match dependency {
        Some((_, version)) => version,
        None => packages()
            .find(|package| field(package, "name") == Some(name))
            .and_then(|package| field(package, "version"))
            .expect("all dependencies are in the lock file"),
    }
}

fn packages() -> impl Iterator<Item = &'static str> {
    LOCK.split("[[package]]")
}

fn field(package: &'static str, name: &str) -> Option<&'static str> {
    let value = |line: &'static str| line.strip_prefix(name)?.strip_prefix(" = \"")?.strip_suffix('"');
    package.lines().find_map(value)
}
