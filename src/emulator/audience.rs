//! The application behind the gateway: a small audience API, in memory.

use std::collections::HashMap;

use http::{HeaderMap, Method, Response, StatusCode};
use serde_json::{Map, Value, json};

use super::{EmulatorBody, answers};

const KEYSPACES: [(&str, &str); 2] = [("com.apsis1.keyspaces.email", "Email"), ("com.apsis1.keyspaces.crm", "CRM")];
const SECTIONS: [(&str, &str); 3] = [
    ("com.apsis1.sections.default", "Default"),
    ("usercreated.sections.newsletter", "Newsletter"),
    ("usercreated.sections.shop", "Shop"),
];

const MERGE_PATCH: &str = "application/merge-patch+json";

/// Is a stored profile, as [`Emulator::profile`](super::Emulator::profile) found it.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Profile {
    /// The attributes: a JSON object. Those of all sections are in one.
    pub attributes: Value,
    /// How many events were added.
    pub events: usize,
}

#[derive(Default)]
pub(super) struct Audience {
    profiles: HashMap<ProfileId, Profile>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
pub(super) struct ProfileId {
    keyspace: String,
    key: String,
}

pub(super) enum Route {
    Keyspaces,
    Sections,
    ReadProfile(ProfileId),
    CreateProfile(ProfileId),
    PatchAttributes(ProfileId),
    PatchSection(ProfileId, String),
    AddEvent(ProfileId),
}

/// A request that the gateway let pass.
pub(super) struct Request<'a> {
    pub(super) route: Route,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
}

pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) detail: &'static str,
}

type Applied = Result<Response<EmulatorBody>, Problem>;

impl Route {
    pub(super) fn find(method: &Method, path: &str) -> Option<Self> {
        let path = path.strip_prefix("/audience/")?;
        let segments: Vec<&str> = path.split('/').collect();
        match (method, segments.as_slice()) {
            (&Method::GET, ["keyspaces"]) => Some(Self::Keyspaces),
            (&Method::GET, ["sections"]) => Some(Self::Sections),
            (method, ["keyspaces", keyspace, "profiles", key, rest @ ..]) => {
                let id = ProfileId::decode(keyspace, key)?;
                match (method, rest) {
                    (&Method::GET, []) => Some(Self::ReadProfile(id)),
                    (&Method::POST, []) => Some(Self::CreateProfile(id)),
                    (&Method::PATCH, ["attributes"]) => Some(Self::PatchAttributes(id)),
                    (&Method::PATCH, ["sections", section, "attributes"]) => {
                        Some(Self::PatchSection(id, percent_decode(section)?))
                    }
                    (&Method::POST, ["events"]) => Some(Self::AddEvent(id)),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

impl Audience {
    pub(super) fn profile(&self, keyspace: &str, key: &str) -> Option<Profile> {
        let id = ProfileId { keyspace: keyspace.to_owned(), key: key.to_owned() };
        self.profiles.get(&id).cloned()
    }

    pub(super) fn apply(&mut self, request: Request<'_>) -> Applied {
        let Request { route, headers, body } = request;
        match route {
            Route::Keyspaces => Ok(list(&KEYSPACES)),
            Route::Sections => Ok(list(&SECTIONS)),
            Route::ReadProfile(id) => Ok(self.existing(&id)?.read()),
            Route::CreateProfile(id) => {
                let attributes = object_if_any(headers, body)?;
                self.create(id, attributes)
            }
            Route::PatchAttributes(id) => {
                let patch = object(headers, MERGE_PATCH, body)?;
                merge(&mut self.existing(&id)?.attributes, Value::Object(patch));
                Ok(answers::bare(StatusCode::NO_CONTENT))
            }
            Route::PatchSection(id, section) => {
                check_section(&section)?;
                let patch = object(headers, MERGE_PATCH, body)?;
                merge(&mut self.existing_or_new(id)?.attributes, Value::Object(patch));
                Ok(answers::bare(StatusCode::NO_CONTENT))
            }
            Route::AddEvent(id) => {
                object(headers, "application/json", body)?;
                self.existing(&id)?.events += 1;
                Ok(answers::bare(StatusCode::CREATED))
            }
        }
    }

    fn create(&mut self, id: ProfileId, attributes: Map<String, Value>) -> Applied {
        id.check_keyspace()?;
        if self.profiles.contains_key(&id) {
            return Err(problem(StatusCode::CONFLICT, "the profile exists"));
        }
        let profile = Profile { attributes: Value::Object(attributes), events: 0 };
        self.profiles.insert(id, profile);
        Ok(answers::bare(StatusCode::CREATED))
    }

    fn existing(&mut self, id: &ProfileId) -> Result<&mut Profile, Problem> {
        id.check_keyspace()?;
        self.profiles.get_mut(id).ok_or_else(|| problem(StatusCode::NOT_FOUND, "no such profile"))
    }

    /// Profiles are created when data is added to them (help.apsis.com/en/articles/6104981).
    fn existing_or_new(&mut self, id: ProfileId) -> Result<&mut Profile, Problem> {
        id.check_keyspace()?;
        let new = || Profile { attributes: Value::Object(Map::new()), events: 0 };
        Ok(self.profiles.entry(id).or_insert_with(new))
    }
}

impl Profile {
    fn read(&self) -> Response<EmulatorBody> {
        let body = json!({"attributes": self.attributes, "events": self.events});
        answers::json(StatusCode::OK, &body)
    }
}

impl ProfileId {
    fn decode(keyspace: &str, key: &str) -> Option<Self> {
        Some(Self { keyspace: percent_decode(keyspace)?, key: percent_decode(key)? })
    }

    fn check_keyspace(&self) -> Result<(), Problem> {
        let mut keyspaces = KEYSPACES.iter();
        if keyspaces.any(|(keyspace, _)| self.keyspace == *keyspace) {
            Ok(())
        } else {
            Err(problem(StatusCode::NOT_FOUND, "no such keyspace"))
        }
    }
}

fn check_section(section: &str) -> Result<(), Problem> {
    let mut sections = SECTIONS.iter();
    if sections.any(|(known, _)| section == *known) {
        Ok(())
    } else {
        Err(problem(StatusCode::NOT_FOUND, "no such section"))
    }
}

/// RFC 7396, section 2: members are replaced, `null` removes them, objects are merged.
fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (name, value) in patch {
        if value.is_null() {
            target.remove(&name);
        } else {
            merge(target.entry(name).or_insert(Value::Null), value);
        }
    }
}

fn object_if_any(headers: &HeaderMap, body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if body.is_empty() {
        return Ok(Map::new());
    }
    object(headers, "application/json", body)
}

fn object(headers: &HeaderMap, media_type: &str, body: &[u8]) -> Result<Map<String, Value>, Problem> {
    if !answers::is_of_type(headers, media_type) {
        let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
        return Err(problem(status, "wrong media type"));
    }
    serde_json::from_slice(body).map_err(|_| problem(StatusCode::BAD_REQUEST, "the body is no JSON object"))
}

/// `None` for what cannot be decoded, and for nothing: no route has an empty segment.
fn percent_decode(segment: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(segment.len());
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => 16 * hex_digit(bytes.next()?)? + hex_digit(bytes.next()?)?,
            byte => byte,
        });
    }
    let decoded = String::from_utf8(decoded).ok()?;
    (!decoded.is_empty()).then_some(decoded)
}

fn hex_digit(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

fn list(items: &[(&str, &str)]) -> Response<EmulatorBody> {
    let items = items.iter();
    let items: Vec<Value> =
        items.map(|(discriminator, name)| json!({"discriminator": discriminator, "name": name})).collect();
    answers::json(StatusCode::OK, &json!({"items": items}))
}

fn problem(status: StatusCode, detail: &'static str) -> Problem {
    Problem { status, detail }
}
