# systemd-creds seals the root key of the spool: without these two it can't, and oe-core leaves them out.
PACKAGECONFIG:append:wardgateos = " tpm2 openssl"
