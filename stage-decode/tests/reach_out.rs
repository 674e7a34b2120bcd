//! Files that name media elsewhere: each is refused by its kind, and nothing is fetched.

#[path = "suite/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use protocol::error::ErrorKind;
use protocol::message::Output;
use protocol::stage::{Port, Stage, Stop};
use support::{Kept, make, picture, request, sound, stage};
use tempfile::tempdir;

/// HTTP server on loopback that counts connections and answers each with "not found".
struct Listener {
    port: u16,
    connections: Arc<AtomicUsize>,
}

impl Listener {
    fn start() -> Self {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        std::thread::spawn(move || {
            for connection in socket.incoming() {
                counted.fetch_add(1, Ordering::SeqCst);
                let Ok(mut connection) = connection else { continue };
                let _ = connection.set_read_timeout(Some(Duration::from_millis(200)));
                let _ = connection.read(&mut [0; 4096]);
                let _ =
                    connection.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
            }
        });
        Listener { port, connections }
    }

    /// Number of connections so far, after a moment for those under way.
    fn connections(&self) -> usize {
        std::thread::sleep(Duration::from_millis(100));
        self.connections.load(Ordering::SeqCst)
    }
}

/// Files by their kind, each naming media at `at`, and the word by which it is refused.
fn files(at: &str) -> Vec<(&'static str, &'static str, String)> {
    let hls = format!(
        "#EXTM3U\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{at}/a.ts\n#EXTINF:10,\n{at}/b.ts\n#EXT-X-ENDLIST\n"
    );
    let master = format!(
        "#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1280000,CODECS=\"avc1.4d401f\",RESOLUTION=640x360\n{at}/low.m3u8\n"
    );
    let dash = format!(
        "<?xml version=\"1.0\"?>\n<MPD xmlns=\"urn:mpeg:dash:schema:mpd:2011\" profiles=\"urn:mpeg:dash:profile:isoff-on-demand:2011\" \
         type=\"static\" mediaPresentationDuration=\"PT10S\" minBufferTime=\"PT2S\">\n<BaseURL>{at}/</BaseURL>\n<Period>\
         <AdaptationSet mimeType=\"video/mp4\" contentType=\"video\"><SegmentTemplate media=\"$Number$.m4s\" \
         initialization=\"init.mp4\" duration=\"2\" startNumber=\"1\"/><Representation id=\"v\" codecs=\"avc1.4d401f\" \
         bandwidth=\"100000\" width=\"320\" height=\"180\"/></AdaptationSet></Period></MPD>\n"
    );
    let smooth = format!(
        "<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<SmoothStreamingMedia MajorVersion=\"2\" MinorVersion=\"0\" \
         Duration=\"100000000\"><StreamIndex Type=\"video\" Chunks=\"1\" QualityLevels=\"1\" \
         Url=\"{at}/QualityLevels({{bitrate}})/Fragments(video={{start time}})\"><QualityLevel Index=\"0\" Bitrate=\"100000\" \
         FourCC=\"H264\" MaxWidth=\"320\" MaxHeight=\"180\" CodecPrivateData=\"000000016742\"/><c d=\"100000000\"/></StreamIndex>\
         </SmoothStreamingMedia>\n"
    );
    let host = at.trim_start_matches("http://");
    let sdp = format!(
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\na=control:rtsp://{host}/a\nm=video 5004 RTP/AVP 96\n\
         a=rtpmap:96 H264/90000\na=control:rtsp://{host}/a/1\n"
    );
    let editing = format!(
        "<ges version='0.4'><project><ressources><asset id='{at}/a.mp4' extractable-type-name='GESUriClip'/></ressources>\
         <timeline><layer priority='0'><clip id='0' asset-id='{at}/a.mp4' type-name='GESUriClip' start='0' duration='1'/>\
         </layer></timeline></project></ges>\n"
    );
    vec![
        ("hls.mp4", "HLS or M3U", hls),
        ("master.mkv", "HLS or M3U", master),
        ("list.mp4", "HLS or M3U", format!("#EXTM3U\n#EXTINF:10,A film\n{at}/a.mp4\n")),
        ("dash.mp4", "DASH", dash),
        ("smooth.mp4", "Smooth Streaming", smooth),
        ("session.mp4", "SDP", sdp),
        ("rtsp.mp4", "RTSP", format!("RTSPtext\nrtsp://{host}/a\n")),
        ("addresses.mp4", "addresses", format!("{at}/a.mp4\n{at}/b.mp4\n")),
        ("pls.mp4", "PLS", format!("[playlist]\nNumberOfEntries=1\nFile1={at}/a.mp4\nVersion=2\n")),
        ("shortcut.mp4", "shortcut", format!("[InternetShortcut]\r\nURL={at}/a.mp4\r\n")),
        ("redirector.mp4", "ASX", format!("[Reference]\r\nRef1={at}/a.asf?MSWMExt=.asf\r\n")),
        ("asx.mp4", "ASX", format!("<ASX version=\"3.0\"><ENTRY><REF HREF=\"{at}/a.asf\"/></ENTRY></ASX>\n")),
        ("concat.mp4", "concat", format!("ffconcat version 1.0\nfile '{at}/a.mp4'\n")),
        (
            "xspf.mp4",
            "XSPF",
            format!(
                "<?xml version=\"1.0\"?>\n<playlist version=\"1\" xmlns=\"http://xspf.org/ns/0/\"><trackList><track><location>\
                 {at}/a.mp4</location></track></trackList></playlist>\n"
            ),
        ),
        (
            "smil.mp4",
            "SMIL",
            format!("<smil xmlns=\"http://www.w3.org/ns/SMIL\"><body><video src=\"{at}/a.mp4\"/></body></smil>\n"),
        ),
        ("timeline.mp4", "editing", editing),
    ]
}

/// The refusal of a file by probe and by decoding.
fn refusals(dir: &Path, name: &str) -> Vec<protocol::error::JobError> {
    let path = dir.join(name);
    let mut stage = stage(dir);
    let probed = stage.probe(path.to_str().unwrap()).expect_err(name);
    // As if a client had planned the file without a probe.
    let film = make(dir, "film.mp4", &[picture("64x64", "10", 2.0)], "-c:v libx264 -preset ultrafast");
    let info = stage.probe(film.to_str().unwrap()).unwrap();
    let mut planned = request(&film, &info, None);
    planned.video = path.to_str().unwrap().to_owned();
    planned.plan.content_id = String::new();
    let stop = stage.process(planned, &mut Kept::default()).expect_err(name);
    let Stop::Failed(decoded) = stop else { panic!("{name}: {stop:?}") };
    vec![probed, decoded]
}

#[test]
fn a_file_that_names_media_elsewhere_is_refused_by_its_kind_and_nothing_is_fetched() {
    let dir = tempdir().unwrap();
    let listener = Listener::start();
    let (mut fetched, mut refused) = (Vec::new(), Vec::new());
    for (name, kind, content) in files(&format!("http://127.0.0.1:{}", listener.port)) {
        std::fs::write(dir.path().join(name), content).unwrap();
        let before = listener.connections();
        refused.push((name, kind, refusals(dir.path(), name)));
        let more = listener.connections() - before;
        fetched.extend((more > 0).then_some((name, more)));
    }
    assert_eq!(fetched, [("", 0); 0], "files whose addresses were fetched, and how often");
    for (name, kind, errors) in refused {
        for error in errors {
            assert_eq!(error.kind, ErrorKind::UnsupportedMedia, "{name}: {error}");
            assert!(error.message.contains(kind), "{name} is not called {kind}: {error}");
            assert!(error.message.contains(name) && error.hint.contains("media file itself"), "{name}: {error}");
        }
    }
    TcpStream::connect(("127.0.0.1", listener.port)).unwrap();
    assert!(listener.connections() > 0, "the listener would not have seen a connection");
}

/// Filters of system calls on each thread of this process that GStreamer or the stage made, by the thread's name.
fn media_threads() -> BTreeMap<String, u32> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().filter_map(|thread| {
        // One that has ended meanwhile has none.
        let status = std::fs::read_to_string(thread.ok()?.path().join("status")).ok()?;
        let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
        let name = field("Name:").filter(|name| name.contains(':') || name.starts_with("decode-"))?;
        Some((name, field("Seccomp_filters:").expect("Linux 5.9 or newer").parse().unwrap()))
    });
    threads.collect()
}

/// Number of filters on the thread that asks.
fn own_filters() -> u32 {
    let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).unwrap().trim().parse().unwrap()
}

/// Port that looks at the threads of this process while they decode.
#[derive(Default)]
struct Looking(BTreeMap<String, u32>);

impl Port for Looking {
    fn emit(&mut self, _: Output<'_>) -> Result<(), Stop> {
        self.0.extend(media_threads());
        Ok(())
    }

    fn cancelled(&self) -> bool {
        false
    }
}

#[test]
fn every_thread_that_decodes_has_a_filter_and_the_one_that_talks_to_the_bus_has_none() {
    let dir = tempdir().unwrap();
    let inputs = [picture("320x240", "25", 20.0), sound(48_000, 20.0)];
    for (name, options) in [
        ("a.mp4", "-c:v libx264 -preset ultrafast -c:a aac"),
        ("a.ts", "-c:v libx264 -preset ultrafast -c:a mp2"),
        ("a.webm", "-c:v libvpx -deadline realtime -c:a libopus"),
    ] {
        let path = make(dir.path(), name, &inputs, options);
        let mut stage = stage(dir.path());
        let info = stage.probe(path.to_str().unwrap()).unwrap();
        let mut looking = Looking::default();
        stage.process(request(&path, &info, None), &mut looking).unwrap();
        let named = |start: &str| looking.0.keys().any(|name| name.starts_with(start));
        assert!(named("decode-video") && looking.0.len() > 3, "{name}: {:?}", looking.0);
        let without: Vec<_> = looking.0.iter().filter(|(_, filters)| **filters <= own_filters()).collect();
        assert!(without.is_empty(), "{name}: {without:?} of {:?}", looking.0);
    }
}

#[test]
fn a_playlist_behind_a_tag_is_not_followed() {
    // A text search at the start of the file does not see it, GStreamer's demuxer of tags does.
    let dir = tempdir().unwrap();
    let listener = Listener::start();
    let (_, _, hls) = files(&format!("http://127.0.0.1:{}", listener.port)).swap_remove(0);
    let mut tagged = b"ID3\x03\x00\x00\x00\x00\x00\x17TIT2\x00\x00\x00\x0d\x00\x00\x00Twelve chars".to_vec();
    tagged.extend(hls.bytes());
    std::fs::write(dir.path().join("tagged.mp3"), tagged).unwrap();
    let errors = refusals(dir.path(), "tagged.mp3");
    assert_eq!(listener.connections(), 0, "connections");
    for error in errors {
        assert_eq!(error.kind, ErrorKind::UnsupportedMedia, "{error}");
        assert!(error.message.contains("HLS or M3U"), "{error}");
    }
}
