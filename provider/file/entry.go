package file

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"github.com/containerd/errdefs"
	decoder "github.com/traefik/paerser/file"
	"github.com/traefik/traefik/v2/pkg/config/dynamic"
	"go.yaml.in/yaml/v3"

	"github.com/netsoc/webspaced/provider"
)

// maxSize of a file that is read; ours stay far below.
const maxSize = 4 << 20

// mark begins each file of the deployment.
func (p *Provider) mark() []byte {
	return fmt.Appendf(nil, "# A route of the webspaced deployment %s. Changes made by hand are overwritten.\n", p.mapping.Deployment)
}

// encode returns the file for a valid route.
func (p *Provider) encode(r provider.Route) ([]byte, error) {
	content := bytes.NewBuffer(p.mark())
	encoder := yaml.NewEncoder(content)
	encoder.SetIndent(2)
	if err := encoder.Encode(p.mapping.Configuration(r)); err != nil {
		return nil, fmt.Errorf("encode: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	return content.Bytes(), nil
}

// check makes sure that Traefik reads content as r: a file that it can not read holds up the changes of everybody.
func (p *Provider) check(r provider.Route, content []byte) error {
	// Traefik executes files as templates, which can read its environment and files.
	if bytes.Contains(content, []byte("{{")) {
		return fmt.Errorf("the file would be a template: %w", errdefs.ErrInvalidArgument)
	}
	var c dynamic.Configuration
	if err := decoder.DecodeContent(string(content), ".yml", &c); err != nil {
		return fmt.Errorf("the file would be malformed: %w: %w", errdefs.ErrInvalidArgument, err)
	}
	if !p.mapping.Route(r.Name, &c).Equal(r) {
		return fmt.Errorf("the file would say another route: %w", errdefs.ErrInvalidArgument)
	}
	return nil
}

// decode returns the route that stands in a file, or one with nothing but the name if the file is not, byte for byte,
// what encode returns for it.
func (p *Provider) decode(name string, content []byte) provider.Route {
	differs := provider.Route{Name: name}
	var c dynamic.Configuration
	if err := yaml.Unmarshal(content, &c); err != nil {
		return differs
	}
	r := p.mapping.Route(name, &c)
	if r.Validate() != nil {
		return differs
	}
	if want, err := p.encode(r); err != nil || !bytes.Equal(content, want) {
		return differs
	}
	return r
}

// read returns the content of a route's file. Errors: fs.ErrNotExist; AlreadyExists if what has the name is not ours; or
// what the file system says.
func (p *Provider) read(root *os.Root, route string) ([]byte, error) {
	name := p.fileName(route)
	info, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file: %w", name, errdefs.ErrAlreadyExists)
	}
	f, err := root.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxSize))
	if err != nil {
		return nil, err
	}
	// A file cut off within the mark is a torn one of ours: nobody loses anything with it.
	if mark := p.mark(); !bytes.HasPrefix(content, mark) && !bytes.HasPrefix(mark, content) {
		return nil, fmt.Errorf("%s does not bear the mark of deployment %s: %w", name, p.mapping.Deployment, errdefs.ErrAlreadyExists)
	}
	return content, nil
}

// stage is the directory in which files are made, before they are moved to where Traefik sees them. Being below the
// routes' directory it is on the same file system. Traefik looks into it, but only for names that end in .yml, .yaml or
// .toml, and does not watch it: a route is one event for Traefik, where a temporary file beside it would be five, and
// after each event Traefik reads all routes.
func (p *Provider) stage() string { return "." + p.mapping.Deployment }

// make writes content to a file on the stage, for the route to have.
func (p *Provider) make(root *os.Root, route string, content []byte, secret, sync bool) (temp string, err error) {
	temp = path.Join(p.stage(), route+"."+rand.Text())
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := root.OpenFile(temp, flags, 0o600)
	if errors.Is(err, fs.ErrNotExist) {
		if err = p.makeStage(root); err != nil {
			return "", err
		}
		f, err = root.OpenFile(temp, flags, 0o600)
	}
	if err != nil {
		return "", err
	}
	// Traefik may be another user, and one file that it can not read holds up everybody, whatever our umask is.
	mode := fs.FileMode(0o644)
	if secret {
		mode = 0o640
		err = shareWithGroup(root, f)
	}
	if err == nil {
		_, err = f.Write(content)
	}
	if err == nil {
		err = f.Chmod(mode)
	}
	if err == nil && sync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = root.Remove(temp)
		return "", err
	}
	return temp, nil
}

// flush writes all that the file system has in memory to the disk.
func flush(root *os.Root) error {
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	return syncFileSystem(dir)
}

func (p *Provider) makeStage(root *os.Root) error {
	if err := root.Mkdir(p.stage(), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return root.Chmod(p.stage(), 0o755) // see make
}

// clear removes what a crash left on the stage.
func (p *Provider) clear(root *os.Root) error {
	left, err := fs.ReadDir(root.FS(), p.stage())
	for _, entry := range left {
		if entry.Type().IsRegular() {
			err = errors.Join(err, root.Remove(path.Join(p.stage(), entry.Name())))
		}
	}
	return err
}
