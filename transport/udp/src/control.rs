//! Control messages: what the kernel says about a datagram besides its bytes, and what it is told.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use crate::socket::Transmit;

/// Length of a control message's header: its length in 8 bytes, its level and its type in 4 each.
const HEADER_BYTES: usize = 16;
/// Control messages begin at multiples of this.
const ALIGNMENT: usize = 8;
/// Room for all control messages of one datagram: mark, destination (v6), segment length.
pub(crate) const CONTROL_BYTES: usize = 128;

/// What control messages said of a message of the kernel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Received {
    pub(crate) local_ip: Option<IpAddr>,
    pub(crate) ecn: Option<u8>,
    /// Length of each datagram but the last, if the kernel coalesced several.
    pub(crate) segment_bytes: Option<usize>,
}

/// Reads the control messages of something received. What is unknown or cut off is passed over.
pub(crate) fn parse(mut bytes: &[u8]) -> Received {
    let mut received = Received::default();
    while let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() {
        let [length, kind] = [&header[..8], &header[8..]].map(|half| u64::from_ne_bytes(half.try_into().expect("8")));
        let level = i32::from_ne_bytes(kind.to_ne_bytes()[..4].try_into().expect("4"));
        let kind = i32::from_ne_bytes(kind.to_ne_bytes()[4..].try_into().expect("4"));
        let Some(data) = (length as usize).checked_sub(HEADER_BYTES).and_then(|length| rest.get(..length)) else {
            break;
        };
        match (level, kind) {
            (libc::IPPROTO_IP, libc::IP_TOS) => received.ecn = data.first().and_then(|&bits| mark(bits)),
            (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                received.ecn = number(data).and_then(|bits| mark(bits as u8));
            }
            (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                let destination = data.get(8..12).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok());
                received.local_ip = destination.map(|octets| Ipv4Addr::from(octets).into());
            }
            (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                received.local_ip = data.first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into());
            }
            (libc::SOL_UDP, libc::UDP_GRO) => {
                received.segment_bytes = number(data).and_then(|bytes| usize::try_from(bytes).ok());
            }
            _ => {}
        }
        bytes = rest.get(data.len().next_multiple_of(ALIGNMENT)..).unwrap_or_default();
    }
    received
}

fn number(data: &[u8]) -> Option<i32> {
    data.first_chunk::<4>().map(|bytes| i32::from_ne_bytes(*bytes))
}

/// The ECN bits of a traffic class; `None` if the sender does not use them.
fn mark(traffic_class: u8) -> Option<u8> {
    Some(traffic_class & 0b11).filter(|&bits| bits != 0)
}

/// Reads a socket address as the kernel writes it.
pub(crate) fn parse_address(bytes: &[u8]) -> Option<SocketAddr> {
    let family = u16::from_ne_bytes(*bytes.first_chunk::<2>()?);
    let port = u16::from_be_bytes(bytes.get(2..4)?.try_into().ok()?);
    match i32::from(family) {
        libc::AF_INET => {
            let octets: [u8; 4] = bytes.get(4..8)?.try_into().ok()?;
            Some((Ipv4Addr::from(octets), port).into())
        }
        libc::AF_INET6 => {
            let flow = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
            let octets: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
            let scope = u32::from_ne_bytes(bytes.get(24..28)?.try_into().ok()?);
            Some(SocketAddrV6::new(octets.into(), port, flow, scope).into())
        }
        _ => None,
    }
}

/// The control messages of something to send.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(8))]
pub(crate) struct ToSend {
    bytes: [u8; CONTROL_BYTES],
    length: usize,
}

impl ToSend {
    pub(crate) fn new(transmit: &Transmit<'_>) -> Self {
        let mut control = Self { bytes: [0; CONTROL_BYTES], length: 0 };
        let ecn = i32::from(transmit.ecn.unwrap_or(0) & 0b11).to_ne_bytes();
        let v4 = match transmit.remote.ip() {
            IpAddr::V4(_) => true,
            IpAddr::V6(ip) => ip.to_ipv4_mapped().is_some(),
        };
        if v4 {
            control.push(libc::IPPROTO_IP, libc::IP_TOS, &ecn);
        } else {
            control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, &ecn);
        }
        if let Some(segment) = transmit.segment_bytes.filter(|&bytes| bytes < transmit.contents.len()) {
            control.push(libc::SOL_UDP, libc::UDP_SEGMENT, &(segment as u16).to_ne_bytes());
        }
        match transmit.local_ip {
            Some(IpAddr::V4(ip)) => {
                let mut info = [0; 12];
                info[4..8].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IP, libc::IP_PKTINFO, &info);
            }
            Some(IpAddr::V6(ip)) => {
                let mut info = [0; 20];
                info[..16].copy_from_slice(&ip.octets());
                control.push(libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, &info);
            }
            None => {}
        }
        control
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn push(&mut self, level: i32, kind: i32, data: &[u8]) {
        let into = &mut self.bytes[self.length..];
        into[..8].copy_from_slice(&(HEADER_BYTES + data.len()).to_ne_bytes());
        into[8..12].copy_from_slice(&level.to_ne_bytes());
        into[12..16].copy_from_slice(&kind.to_ne_bytes());
        into[HEADER_BYTES..HEADER_BYTES + data.len()].copy_from_slice(data);
        self.length += HEADER_BYTES + data.len().next_multiple_of(ALIGNMENT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        for (remote, local, ecn) in
            [("10.0.0.1:1", "10.0.0.2", 2), ("[fe80::1]:2", "fe80::2", 1), ("[::1]:2", "::1", 3)]
        {
            let local_ip: Option<IpAddr> = Some(local.parse().expect("an address"));
            let transmit = Transmit {
                remote: remote.parse().expect("an address"),
                local_ip,
                ecn: Some(ecn),
                contents: &[0; 100],
                segment_bytes: Some(60),
            };
            let control = ToSend::new(&transmit);
            let heard = parse(control.as_bytes());
            assert_eq!(heard.ecn, Some(ecn), "{remote}");
            // The kernel names our address elsewhere in an IPv4 message than we do, as what we may choose.
            if local_ip.is_some_and(|ip| ip.is_ipv6()) {
                assert_eq!(heard.local_ip, local_ip, "{remote}");
            }
            for cut in 0..control.as_bytes().len() {
                parse(&control.as_bytes()[..cut]);
            }
        }
    }

    #[test]
    fn garbage_is_passed_over() {
        let mut state = 3_u32;
        for length in (0..CONTROL_BYTES).cycle().take(20_000) {
            let garbage: Vec<u8> = std::iter::repeat_with(|| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                // Small numbers, so that lengths and types are often nearly right.
                if state >> 30 == 0 { (state >> 24) as u8 } else { (state >> 24) as u8 & 0x1f }
            })
            .take(length)
            .collect();
            parse(&garbage);
            parse_address(&garbage);
        }
        assert_eq!(parse(&[0; 64]), Received::default());
        assert_eq!(parse(&[0xff; 64]), Received::default());
    }
}
