package testbed

import (
	"archive/tar"
	"crypto/tls"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// Image is what a test image is made of: busybox, and what it does when it boots. An image is about 2 MB and boots in
// a third of a second. Each has a shell on the console.
type Image struct {
	// Services are commands that run, and are started again when they end.
	Services []string
	// Boot is a shell script that runs once, before the services.
	Boot string
	// Deaf makes an init that takes no notice of the signal to shut down.
	Deaf bool
	// Files are further ones: path in the image to content. Those that begin with "#!" can be executed.
	Files map[string]string
	// Programs are names of programs of this host that the image has too, at the same place and with their libraries.
	Programs []string
}

// Ports of the hello image besides 80.
const (
	EchoPort = 7    // sends back what it gets
	LatePort = 8081 // as 80, see [Late]
)

const (
	dhcp = "/bin/udhcpc -f -i eth0 -s /etc/udhcpc.sh"
	web  = "/bin/httpd -f -p 80 -h /www"
	echo = "/bin/nc -ll -p 7 -e /bin/cat"
)

// Hello serves, on port 80, a page that says "hello from NAME\n", NAME being the instance's, and /cgi-bin/request,
// which answers with the request's method, headers (as CGI variables) and body. EchoPort sends back what it gets.
func Hello() Image { return Image{Services: []string{dhcp, web, echo}} }

// Deaf is Hello with an init that ignores the signal to shut down.
func Deaf() Image { return Image{Services: []string{dhcp, web, echo}, Deaf: true} }

// Addressless is Hello without DHCP: it never gets an address.
func Addressless() Image { return Image{Services: []string{web, echo}} }

// Fleeting powers itself off when it has just booted.
func Fleeting() Image { return Image{Boot: "poweroff -f"} }

// Late is Hello with a web server that only opens its port after a while.
func Late(after time.Duration) Image {
	return Image{Services: []string{dhcp, echo, fmt.Sprintf("/bin/sh -c 'sleep %.1f; exec %s'", after.Seconds(), web)}}
}

// Portless boots, gets an address and listens nowhere.
func Portless() Image { return Image{Services: []string{dhcp}} }

// Dropbear is Hello with an SSH server that does not start by itself. Its root can not log in.
func Dropbear(t testing.TB) Image {
	t.Helper()
	need(t, "dropbear", "dropbearkey", "ldd")
	image := Hello()
	image.Programs = []string{"dropbear", "dropbearkey"}
	image.Files = map[string]string{"etc/shadow": "root:!:1::::::\n"}
	return image
}

// Secure is Hello that has its page at port 443 as well, over TLS, with a certificate of its own.
func Secure(t testing.TB, certificate tls.Certificate) Image {
	t.Helper()
	need(t, "openssl", "ldd")
	image := Hello()
	image.Programs = []string{"openssl"}
	chain, key := EncodePEM(t, certificate)
	image.Files = map[string]string{"etc/chain.pem": chain, "etc/key.pem": key}
	image.Services = append(image.Services,
		"/bin/sh -c 'cd /www; exec openssl s_server -accept 443 -cert /etc/chain.pem -cert_chain /etc/chain.pem -key /etc/key.pem -WWW'")
	return image
}

// debianImage is made by test/debian/build.
const debianImage = "/var/cache/webspaced-test/debian-12.tar"

// Debian gives the engine an image of Debian with systemd and an SSH server, which does not start by itself, and a profile
// for its instances. They run no web server.
func (e *Engine) Debian(t testing.TB) (alias, profile string) {
	t.Helper()
	if _, err := os.Stat(debianImage); err != nil {
		missing(t, "needs a Debian image: test/debian/build makes it")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	const name = "debian"
	if e.images[name] {
		return name, name
	}
	for _, args := range [][]string{
		{"image", "import", debianImage, "--alias", name},
		{"profile", "copy", e.Profile, name},
		{"profile", "unset", name, "raw.lxc"}, // that is for busybox
	} {
		if err := e.run(args...); err != nil {
			t.Fatal(err)
		}
	}
	e.images[name] = true
	return name, name
}

// ImportImage gives the engine an image under an alias, unless it has one of this alias: images stay for the whole test
// binary.
func (e *Engine) ImportImage(t testing.TB, alias string, image Image) {
	t.Helper()
	if err := e.importImage(alias, image); err != nil {
		t.Fatal(err)
	}
}

func (e *Engine) importImage(alias string, image Image) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.images[alias] {
		return nil
	}
	path := filepath.Join(e.cell.directory, "image-"+alias+".tar")
	if err := image.write(path, alias); err != nil {
		return fmt.Errorf("image %s: %w", alias, err)
	}
	defer os.Remove(path)
	// An LXD that was killed and started again at times never answers an import, so it is asked again.
	var err error
	for range 4 {
		if _, err = e.outputWithin(30*time.Second, "image", "import", path, "--alias", alias); err == nil {
			break
		}
		if e.run("image", "show", alias) == nil {
			err = nil // it is there all the same
			break
		}
	}
	if err != nil {
		return err
	}
	e.images[alias] = true
	return nil
}

func (i Image) write(path, alias string) (err error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return err
	}
	program, err := os.ReadFile(busybox)
	if err != nil {
		return err
	}
	applets, err := exec.Command(busybox, "--list").Output()
	if err != nil {
		return err
	}
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() {
		if e := f.Close(); err == nil {
			err = e
		}
	}()
	w := tar.NewWriter(f)
	defer func() {
		if e := w.Close(); err == nil {
			err = e
		}
	}()
	put := func(h tar.Header, content string) {
		if err != nil {
			return
		}
		h.Size, h.ModTime, h.Format = int64(len(content)), time.Unix(1, 0), tar.FormatPAX
		if err = w.WriteHeader(&h); err == nil {
			_, err = w.Write([]byte(content))
		}
	}
	// The alias is in it so that two images of the same making are two images to the engine.
	put(tar.Header{Name: "metadata.yaml", Mode: 0o644}, fmt.Sprintf(
		"architecture: %s\ncreation_date: 1\nproperties:\n  os: busybox\n  description: %s\n", architecture(), alias))
	for _, dir := range strings.Fields("bin dev etc proc root run sbin sys tmp var www www/cgi-bin") {
		put(tar.Header{Name: "rootfs/" + dir + "/", Typeflag: tar.TypeDir, Mode: 0o755}, "")
	}
	put(tar.Header{Name: "rootfs/bin/busybox", Mode: 0o755}, string(program))
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			put(tar.Header{Name: "rootfs/bin/" + applet, Typeflag: tar.TypeSymlink, Linkname: "busybox", Mode: 0o777}, "")
		}
	}
	copies, err := withLibraries(i.Programs)
	if err != nil {
		return err
	}
	for _, path := range copies {
		content, failure := os.ReadFile(path)
		if failure != nil {
			return failure
		}
		put(tar.Header{Name: "rootfs" + path, Mode: 0o755}, string(content))
	}
	files := i.files()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		mode := int64(0o644)
		if strings.HasPrefix(files[name], "#!") {
			mode = 0o755
		}
		put(tar.Header{Name: "rootfs/" + strings.TrimPrefix(name, "/"), Mode: mode}, files[name])
	}
	return err
}

// withLibraries returns the paths of programs and of what they are linked with.
func withLibraries(programs []string) (paths []string, err error) {
	for _, program := range programs {
		path, err := exec.LookPath(program)
		if err != nil {
			return nil, err
		}
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return nil, fmt.Errorf("ldd %s: %w", path, err)
		}
		paths = append(paths, path)
		for word := range strings.FieldsSeq(string(out)) {
			if strings.HasPrefix(word, "/") {
				paths = append(paths, word)
			}
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths), nil
}

func (i Image) files() map[string]string {
	files := map[string]string{
		"etc/passwd":    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
		"etc/group":     "root:x:0:\nnogroup:x:65534:\n",
		"etc/udhcpc.sh": udhcpcScript,
		"etc/boot": "#!/bin/sh\nip link set lo up\nip link set eth0 up\n" +
			"echo \"hello from $(hostname)\" > /www/index.html\n" + i.Boot + "\n",
		"www/cgi-bin/request": requestScript,
	}
	if i.Deaf {
		init := "#!/bin/sh\ntrap '' USR1 USR2 TERM INT PWR HUP\n/etc/boot\n"
		for _, service := range i.Services {
			init += service + " &\n"
		}
		files["sbin/init"] = init + "while :; do /bin/sh </dev/console >/dev/console 2>&1; sleep 1; done\n"
	} else {
		init := "::sysinit:/etc/boot\nconsole::respawn:/bin/sh\n"
		for n, service := range i.Services {
			// What init can not take on its line (quotes, long commands) goes into a script.
			script := fmt.Sprintf("etc/service%d", n)
			files[script] = "#!/bin/sh\nexec " + service + "\n"
			init += "::respawn:/" + script + "\n"
		}
		files["etc/inittab"] = init
		files["sbin/init"] = "#!/bin/sh\nexec /bin/init\n"
	}
	maps.Copy(files, i.Files)
	return files
}

const udhcpcScript = `#!/bin/sh
case $1 in
deconfig)
	ip addr flush dev "$interface"
	;;
bound|renew)
	ip addr replace "$ip/$mask" dev "$interface"
	[ -z "$router" ] || ip route replace default via "${router%% *}"
	;;
esac
`

const requestScript = `#!/bin/sh
printf 'Content-Type: text/plain\r\n\r\n'
echo "$REQUEST_METHOD $REQUEST_URI"
env | grep -E '^(HTTP_|CONTENT_|REMOTE_|SERVER_)' | sort
echo
[ -z "$CONTENT_LENGTH" ] || head -c "$CONTENT_LENGTH"
`

func architecture() string {
	switch runtime.GOARCH {
	case "arm64":
		return "aarch64"
	default:
		return "x86_64"
	}
}
