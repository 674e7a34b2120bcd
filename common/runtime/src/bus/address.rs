//! The broker's address taken apart: where its servers are, and who this process is to them where the address says so.
//! The client library is given the two apart, so that nothing that it logs or reports holds a password.

use async_nats::ServerAddr;
use config::Address;

use super::error::{BusError, BusErrorKind};

/// Who a process is by its address.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Identity {
    /// `nats://user:password@host`.
    User(String, String),
    /// `nats://token@host`.
    Token(String),
}

/// Servers that an address may name. A cluster's servers tell clients of each other, so a few to begin with are enough.
const MOST_SERVERS: usize = 16;

/// Servers of a broker: any of them will do. They are different ones, and all spoken to in the same way.
pub(super) fn servers(address: &Address) -> Result<Vec<ServerAddr>, BusError> {
    let servers = parsed(&address.without_users(), "give nats://host:port, several separated by commas")?;
    let all = servers.len();
    let wrong = |text: String| Err(BusError::new(BusErrorKind::Address, format!("bus.url ({address}): {text}")));
    if all > MOST_SERVERS {
        return wrong(format!(
            "it names {all} servers, more than {MOST_SERVERS}: a few of a cluster are enough, which tell of the others"
        ));
    }
    for (at, server) in servers.iter().enumerate() {
        let place = |server: &ServerAddr| (server.host().to_ascii_lowercase(), server.port());
        if let Some(first) = servers[..at].iter().position(|other| place(other) == place(server)) {
            let (first, at) = (first + 1, at + 1);
            return wrong(format!("server {at} of {all} is the same as server {first}: name each server once"));
        }
        if server.tls_required() != servers[0].tls_required() {
            let (tls, plain) = if server.tls_required() { (at + 1, 1) } else { (1, at + 1) };
            return wrong(format!(
                "server {tls} of {all} is spoken to with TLS and server {plain} without, so that which one answers decided \
                 whether passwords are readable on the way: write tls:// before all, or before none"
            ));
        }
    }
    Ok(servers)
}

/// Who the address says that this process is, if it does.
pub(super) fn identity(address: &Address) -> Result<Option<Identity>, BusError> {
    if !address.has_users() {
        return Ok(None);
    }
    let todo =
        "write what is neither letter nor digit in a user or password as %XX, or take bus.user and bus.password_file";
    let wrong = |what: &str| BusError::new(BusErrorKind::Address, format!("bus.url ({address}): {what}; {todo}"));
    let mut said: Vec<Option<Identity>> = Vec::new();
    for server in parsed(address, todo)? {
        let text = |encoded: &str| decoded(encoded).ok_or_else(|| wrong("a % without two hexadecimal digits"));
        said.push(match (server.username(), server.password()) {
            (None, _) => None,
            (Some(user), Some(password)) => Some(Identity::User(text(user)?, text(password)?)),
            (Some(token), None) => Some(Identity::Token(text(token)?)),
        });
    }
    said.dedup();
    match said.as_slice() {
        [Some(identity)] => Ok(Some(identity.clone())),
        _ => Err(wrong("its servers do not all have the same user and password")),
    }
}

/// The servers of an address. An error shows the address as a whole: a password may hold a comma, and a piece of it is no
/// more to be shown than the whole.
fn parsed(address: &Address, todo: &str) -> Result<Vec<ServerAddr>, BusError> {
    let given: Vec<&str> = address.servers().collect();
    let parsed = given.iter().enumerate().map(|(at, server)| {
        let wrong = match server.parse::<ServerAddr>() {
            _ if server.is_empty() => "nothing stands there".to_owned(),
            Ok(parsed) if !parsed.host().is_empty() => return Ok(parsed),
            Ok(_) => "it names no host".to_owned(),
            Err(e) => e.to_string(),
        };
        let (at, all) = (at + 1, given.len());
        Err(BusError::new(
            BusErrorKind::Address,
            format!("bus.url ({:?}), server {at} of {all}: {wrong}; {todo}", address.to_string()),
        ))
    });
    parsed.collect()
}

/// A part of an address with its `%XX` read; none where they are not.
fn decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = part.as_bytes();
    while let [first, behind @ ..] = rest {
        rest = behind;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(behind.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &behind[2..];
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(address: &str) -> Result<Option<Identity>, String> {
        identity(&Address::from(address)).map_err(|e| e.to_string())
    }

    #[test]
    fn an_address_says_who_asks_and_the_servers_hear_of_it_from_us_alone() {
        let user = |user: &str, password: &str| Some(Identity::User(user.to_owned(), password.to_owned()));
        assert!(who("nats://here:1,nats://there:2").unwrap().is_none());
        assert!(who("nats://u:p%40%2fss@here:1").unwrap() == user("u", "p@/ss"));
        assert!(who("u:p@here:1, u:p@there:2").unwrap() == user("u", "p"));
        assert!(who("nats://token@here").unwrap() == Some(Identity::Token("token".to_owned())));
        let servers = servers(&Address::from("tls://u:geheim@here:1,tls://u:geheim@there")).unwrap();
        let shown = format!("{servers:?}");
        assert!(!shown.contains("geheim") && servers.len() == 2 && servers[1].tls_required(), "{shown}");
    }

    #[test]
    fn servers_that_cannot_be_meant_are_told_by_their_place_and_without_their_password() {
        let many = (1..=17).map(|port| format!("nats://u:geheim@here:{port}")).collect::<Vec<_>>().join(",");
        for (address, word) in [
            ("nats://u:geheim@here:1,nats://u:geheim@there:1,u:geheim@HERE:1", "server 3 of 3 is the same as server 1"),
            ("nats://here,nats://here:4222", "server 2 of 2 is the same as server 1"),
            (
                "nats://u:geheim@here:1,tls://u:geheim@there:1",
                "server 2 of 2 is spoken to with TLS and server 1 without",
            ),
            ("tls://here,there", "server 1 of 2 is spoken to with TLS and server 2 without"),
            ("nats://here, ,nats://there", "server 2 of 3: nothing stands there"),
            (many.as_str(), "17 servers, more than 16"),
        ] {
            let error = servers(&Address::from(address)).unwrap_err();
            let text = error.to_string();
            assert!(error.kind() == BusErrorKind::Address && text.contains(word), "{address}: {text}");
            assert!(!text.contains("geheim"), "{text}");
        }
        assert_eq!(servers(&Address::from("nats://here:1,nats://here:2,nats://[::1]:1")).unwrap().len(), 3);
    }

    #[test]
    fn what_is_no_address_is_told_without_its_password() {
        for address in [
            "",
            "nats://here,,nats://there",
            "nats://",
            "nats://u:geheim@here:port",
            "nats://u:ge/heim@here",
            "nats://u:geheim,x@here",
            "u:%geheim@here",
        ] {
            let given = Address::from(address);
            let said = match servers(&given).and_then(|_| identity(&given)) {
                Ok(_) => panic!("{address}: taken for an address"),
                Err(e) => e,
            };
            let text = said.to_string();
            assert!(said.kind() == BusErrorKind::Address && !text.contains("heim"), "{text}");
        }
        for address in ["u:geheim@here,there", "u:geheim@here,v:geheim@there"] {
            let text = who(address).map(drop).unwrap_err();
            assert!(text.contains("the same user") && !text.contains("geheim"), "{text}");
        }
    }
}
