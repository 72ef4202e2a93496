package proof

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// open checks that the salts have the lengths of commitments that the record has,
// and that the tenant's name is the one that it commits to.
func (s Salts) open(r Record, tenant string) error {
	for _, f := range []struct {
		name, salt, commit string
		n                  int
	}{{"keyCommit", s.Key, r.KeyCommit, KeySaltLen}, {"tenantCommit", s.Tenant, r.TenantCommit, SaltLen},
		{"nodeCommit", s.Node, r.NodeCommit, SaltLen}, {"shareCommit", s.Share, r.ShareCommit, SaltLen}} {
		if (f.salt == "") != (f.commit == "") {
			return fmt.Errorf("salt and %s do not stand together", f.name)
		}
		if f.salt != "" {
			if err := checkHex("salt of "+f.name, f.salt, f.n); err != nil {
				return err
			}
		}
	}
	if r.TenantCommit == "" {
		if tenant != "" {
			return errors.New("a tenant is named whom the record does not commit to")
		}
		return nil
	}
	salt, err := hex.DecodeString(s.Tenant)
	if err != nil {
		return err
	}
	if TenantCommit(r.LeaseID, salt, tenant) != r.TenantCommit {
		return fmt.Errorf("tenantCommit is not of tenant %.128q", tenant)
	}
	return nil
}
