# Makes an SSH server start with the system. It runs as root in an instance, in whatever POSIX shell there is. $1 is the
# command that installs a server; empty: nobody knows one. Exit code 64: there is none, and none can be installed.
set -eu
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH

server() {
	for program in sshd dropbear; do
		if command -v "$program" >/dev/null 2>&1; then
			echo "$program"
			return
		fi
	done
	return 1
}

if program=$(server); then
	# Host keys that came with the image would be those of every webspace made from it.
	if [ "$program" = sshd ] && command -v ssh-keygen >/dev/null 2>&1; then
		rm -f /etc/ssh/ssh_host_*_key /etc/ssh/ssh_host_*_key.pub
	elif command -v dropbearkey >/dev/null 2>&1; then
		rm -f /etc/dropbear/dropbear_*_host_key
	fi
else
	[ -n "$1" ] || exit 64
	# The network comes up after the system has started: wait for a default route.
	seconds=0
	until grep -qs '^[^[:space:]]*[[:space:]]00000000' /proc/net/route || [ "$seconds" -ge 30 ]; do
		sleep 1
		seconds=$((seconds + 1))
	done
	tries=0
	until sh -ec "$1"; do
		tries=$((tries + 1))
		[ "$tries" -lt 3 ] || exit 1
		sleep 3
	done
	program=$(server) || {
		echo "nothing that was installed is an SSH server" >&2
		exit 1
	}
fi
if [ "$program" = sshd ]; then
	mkdir -p /etc/ssh
	! command -v ssh-keygen >/dev/null 2>&1 || ssh-keygen -A
else
	mkdir -p /etc/dropbear
	for type in ed25519 ecdsa rsa; do
		key=/etc/dropbear/dropbear_${type}_host_key
		[ -e "$key" ] || ! command -v dropbearkey >/dev/null 2>&1 || dropbearkey -t "$type" -f "$key" >/dev/null 2>&1
	done
fi
# Without PAM, sshd lets nobody in whose account is locked, not even with a key.
[ ! -w /etc/shadow ] || sed -i 's/^root:!!*:/root:*:/' /etc/shadow

# --root: systemd may not have come far enough yet to be talked to.
if command -v systemctl >/dev/null 2>&1; then
	for unit in ssh sshd dropbear; do
		for directory in /etc /usr/lib /lib; do
			if [ -e "$directory/systemd/system/$unit.service" ]; then
				systemctl --root=/ unmask "$unit.service"
				systemctl --root=/ enable "$unit.service"
				exit
			fi
		done
	done
	echo "systemd has no service for $program" >&2
	exit 1
fi
if command -v rc-update >/dev/null 2>&1; then
	rc-update add "$program" default
	exit
fi
if grep -qs '^::' /etc/inittab; then # busybox
	path=$(command -v "$program")
	case $program in
	sshd) line="::respawn:$path -D -e" ;;
	*) line="::respawn:$path -F -E -R" ;;
	esac
	grep -qs "^::respawn:$path" /etc/inittab || echo "$line" >>/etc/inittab
	exit
fi
if command -v update-rc.d >/dev/null 2>&1; then
	for service in ssh "$program"; do
		if [ -e "/etc/init.d/$service" ]; then
			update-rc.d "$service" defaults
			exit
		fi
	done
fi
echo "this system has no init that is known here" >&2
exit 1
