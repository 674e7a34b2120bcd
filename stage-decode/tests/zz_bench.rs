use stage_decode::{picture::Picture, resize::Resizer};
#[test]
fn bench() {
    for (w, h) in [(1920, 1080), (1280, 720)] {
        let rgb: Vec<u8> = (0..w * h * 3).map(|i| (i * 7919) as u8).collect();
        let p = Picture::from_rgb(w, h, &rgb);
        let mut r = Resizer::default();
        let mut out = vec![0; 384 * 384 * 3];
        r.resize(&p, &mut out);
        let t = std::time::Instant::now();
        for _ in 0..20 {
            r.resize(&p, &mut out);
        }
        println!("{w}x{h} {:?}", t.elapsed() / 20);
    }
}
